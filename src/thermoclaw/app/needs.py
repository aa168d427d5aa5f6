"""The one module of the app that imports Streamlit and plotly."""

from __future__ import annotations

try:
    import plotly.graph_objects as go
    import streamlit as st
except ImportError as error:
    raise ImportError("the app needs Streamlit and plotly: pip install 'thermoclaw[app]'") from error

__all__ = ["go", "st"]
