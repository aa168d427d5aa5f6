"""SHOW inside other people's loops: the Hugging Face `Trainer`.

A module that needs a framework imports it itself and names the extra to install where it is missing; importing this
package loads nothing.
"""
