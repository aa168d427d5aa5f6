"""The script that Streamlit runs, from top to bottom, whenever somebody does something on the page."""

from __future__ import annotations

import re
from pathlib import Path

from thermoclaw.app import jobs, other_tabs, train_tab
from thermoclaw.app.folders import Folders, PathError
from thermoclaw.app.needs import st
from thermoclaw.app.telling import plain, tell

NEW = "(new run)"
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def main() -> None:
    """The page."""
    st.set_page_config(page_title="Thermoclaw", layout="wide", initial_sidebar_state="auto")
    if not is_local(st.context.headers.get("Host")):
        st.error("This page is for this machine alone: open it as 127.0.0.1 or localhost.")
        return
    folders = Folders.from_environment()
    run = _pick(folders)
    if run is None:
        train_tab.new_run(folders)
        return
    told = jobs.state_of(run)
    st.subheader(plain(run.relative_to(folders.runs).as_posix()))
    train, dynamics, data, export = st.tabs(["Train", "Dynamics", "Data", "Export"])
    with train:
        train_tab.progress(run, told)
    with dynamics:
        other_tabs.dynamics(run, told)
    with data:
        other_tabs.data(run)
    with export:
        other_tabs.export(folders, run)


def is_local(host: str | None) -> bool:
    """Whether a page was asked for under this machine's own name.

    A stranger's page can have its name lead to 127.0.0.1 (DNS rebinding); the browser then still says that name.

    >>> [is_local(host) for host in ("127.0.0.1:1", "localhost", "[::1]:1", None, "evil.example:1", "127.0.0.1.x")]
    [True, True, True, True, False, False]
    """
    return host is None or re.sub(r":\d+$", "", host.lower()) in LOCAL


def _pick(folders: Folders) -> Path | None:
    """The run that the sidebar, or the page's address, names."""
    names = folders.list_runs()
    wanted = st.query_params.get("run", NEW)
    with st.sidebar:
        st.title("Thermoclaw")
        if wanted not in (NEW, *names):
            tell("There is no run of that name under the folder.", kind="warning")
            wanted = NEW
        options = [NEW, *names]
        chosen = st.selectbox(
            "Run", options, index=options.index(wanted), format_func=lambda name: _label(folders, name)
        )
        st.button("Look again", help="for runs that were begun elsewhere")
        st.caption(
            f"Runs are in {plain(_shown(folders.runs))}/. This page listens on 127.0.0.1 alone and sends nothing "
            "anywhere."
        )
    if chosen != st.query_params.get("run", NEW):
        st.query_params["run"] = chosen
    if chosen == NEW:
        return None
    try:
        return folders.run(chosen)
    except PathError as error:
        tell(error, kind="error")
        return None


def _shown(folder: Path) -> str:
    """A folder as a person wrote it: below the working directory, from there."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _label(folders: Folders, name: str) -> str:
    if name == NEW:
        return NEW
    state = jobs.state_of(folders.runs / name)["state"]
    return f"{name} · {state}" if state else name


if __name__ == "__main__":
    main()
