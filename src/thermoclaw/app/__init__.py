"""The web page behind `thermoclaw app`: start and stop trainings, watch any run under the folders that were given.

    folders   what may be looked at          jobs   trainings, each a process of its own
    page      the script that Streamlit runs: sidebar and four tabs, train, dynamics, data, export
    charts    figures

Nothing is kept in the page: what it shows is read from the run's folder, so it can be closed and opened at any time.
"""
