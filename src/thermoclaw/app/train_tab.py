"""The tab Train: a form that begins a run, and how the run that was picked comes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from thermoclaw.app import charts, jobs
from thermoclaw.app.folders import UPLOAD_MB, Folders
from thermoclaw.app.needs import st
from thermoclaw.app.reading import read_record
from thermoclaw.app.telling import clock, findings_of, percent, plain, tell
from thermoclaw.record import Record
from thermoclaw.train.checkpoints import FOLDER as CHECKPOINTS
from thermoclaw.train.log import read_log
from thermoclaw.train.settings import MODELS, OPTIMIZERS, SCHEDULES
from thermoclaw.train.status import FINISHED
from thermoclaw.wording import number

REFRESH_S = 2.0
_METRIC = 140  # pixels
_BEGUN = "begun"  # of the session: the run that this page began last
_UPLOAD = "A ZIP file of my own (below)"


def new_run(folders: Folders) -> None:
    """The form."""
    st.subheader("New run")
    st.caption("It trains in a process of its own: this page may be closed or loaded again meanwhile.")
    known = folders.data_sets()
    with st.form("new", border=True):
        name = st.text_input("Name", value=f"run-{time.strftime('%Y%m%d-%H%M%S')}", max_chars=64, key="name")
        left, right = st.columns(2)
        data = left.selectbox("Data", [*known, _UPLOAD], key="data")
        model = right.selectbox("Model", MODELS, key="model")
        sent = st.file_uploader(
            "ZIP file of images",
            type="zip",
            key="zip",
            max_upload_size=UPLOAD_MB,
            help="train/CLASS/… and test/CLASS/…, or CLASS/… alone. Only images are taken out of it, as judged by "
            "their contents.",
        )
        given = _settings()
        begin = st.form_submit_button("Start training", type="primary")
    if begin:
        _begin(folders, name, {**given, "model": model}, "" if data == _UPLOAD else known[data], sent)
    else:
        st.session_state.pop(_BEGUN, None)


def _settings() -> dict[str, Any]:
    first, second, third, fourth = st.columns(4)
    given: dict[str, Any] = {
        "epochs": first.number_input("Epochs", 1, 10_000, 10, key="epochs"),
        "batch_size": second.number_input("Batch size", 2, 4096, 128, key="batch_size"),
        "optimizer": third.selectbox("Optimizer", list(OPTIMIZERS), key="optimizer"),
        "lr": fourth.number_input("Learning rate", 0.0, 10.0, None, format="%g", placeholder="default", key="lr"),
    }
    with st.expander("More"):
        first, second, third = st.columns(3)
        given |= {
            "momentum": first.number_input("Momentum", 0.0, 0.999, 0.9, format="%g", key="momentum"),
            "weight_decay": second.number_input("Weight decay", 0.0, 100.0, 5e-4, format="%g", key="weight_decay"),
            "schedule": third.selectbox("Schedule", SCHEDULES, key="schedule"),
            "steps": first.number_input("Steps at most", 1, 100_000_000, None, placeholder="all", key="steps"),
            "seed": second.number_input("Seed", 0, 2**31 - 1, 0, key="seed"),
            "image_size": third.number_input("Image size", 8, 512, 32, key="image_size"),
            "device": first.selectbox("Device", ["auto", "cpu", "cuda"], key="device"),
            "augment": {"by data set": None, "yes": True, "no": False}[
                second.selectbox("Crop and flip", ["by data set", "yes", "no"], key="augment")
            ],
            "amp": third.checkbox("Compute in bfloat16", key="amp"),
        }
    return given


def _begin(folders: Folders, name: str, given: dict[str, Any], data: str, sent: Any) -> None:
    if st.session_state.get(_BEGUN) != name or name not in folders.list_runs():  # else a second click
        try:
            if not data and sent is None:
                raise ValueError("choose a ZIP file, or one of the data sets")
            data = data or folders.keep_upload(sent.getvalue())
            jobs.start(folders, name, {**given, "data": data})
        except (OSError, ValueError) as error:
            st.error(plain(error))
            return
        st.session_state[_BEGUN] = name
    st.query_params["run"] = name
    st.rerun()


def progress(run: Path, told: dict[str, Any]) -> None:
    """How a run comes on; it draws itself anew while the run goes on."""
    live = jobs.is_live(told)
    st.fragment(_progress, run_every=REFRESH_S if live else None)(run, live)


def _progress(run: Path, live: bool) -> None:
    told = jobs.state_of(run)
    if live and not jobs.is_live(told):
        st.rerun(scope="app")
    record = read_record(run)
    _head(run, told)
    if isinstance(record, Record):
        findings_of(run, record, live=live)
    rows = read_log(run)
    points = [row for row in rows if "loss" in row and "lr" in row]
    left, right = st.columns(2)
    if points:
        chart = charts.loss_chart([row["step"] for row in points], [row["loss"] for row in points], rows)
    elif isinstance(record, Record):
        chart = charts.loss_chart(record.steps.tolist(), record.loss, [])
    else:
        st.info("No step yet." if live else plain(record))
        return
    left.plotly_chart(chart, key="loss", config=charts_config())
    tested = [row for row in rows if "val_accuracy" in row]
    if tested:
        right.plotly_chart(charts.accuracy_chart(tested), key="accuracy", config=charts_config())
        table = [
            {
                "epoch": int(row["epoch"]),
                "test loss": number(row["val_loss"]) if row.get("val_loss") is not None else "–",
                "test accuracy": percent(row["val_accuracy"]),
            }
            for row in tested
        ]
        st.dataframe(table, hide_index=True, height=min(38 + 35 * len(table), 250))


def _head(run: Path, told: dict[str, Any]) -> None:
    state = told["state"]
    if state:
        steps, step = int(told.get("steps") or 0), int(told.get("step") or 0)
        phase = told.get("phase") or ""
        asked = jobs.is_live(told) and jobs.is_asked_to_stop(run)
        words = "stopping" if asked else state + (f", {phase}" if phase and phase != "training" else "")
        st.progress(
            min(step / steps, 1.0) if steps else 0.0, text=f"{words}: step {step:,} of {steps:,}" if steps else words
        )
        with st.container(horizontal=True, gap="small"):  # side by side as far as there is room
            st.metric("Epoch", f"{told.get('epoch', '–')} / {told.get('epochs', '–')}", width=_METRIC)
            loss = told.get("loss")
            st.metric("Training loss", number(loss) if loss is not None else "–", width=_METRIC)
            st.metric("Test accuracy", percent(told.get("val_accuracy")), width=_METRIC)
            st.metric("Time left" if jobs.is_live(told) else "Time", clock(_seconds(told)), width=_METRIC)
    if state and state != FINISHED:
        _buttons(run, told)
    if told.get("error"):
        tell(told["error"], kind="error")


def _buttons(run: Path, told: dict[str, Any]) -> None:
    """Each always in its place: a second click never meets the other one."""
    live = jobs.is_live(told)
    with st.container(horizontal=True, gap="small"):
        words = "after the present step, with a checkpoint and a report"
        if st.button("Stop", key="stop", help=words, disabled=not live or jobs.is_asked_to_stop(run)):
            jobs.stop(run)
            st.rerun(scope="app")
        can_go_on = not live and _can_go_on(run, told["state"])
        if st.button("Go on", key="go_on", help="from the newest checkpoint", disabled=not can_go_on):
            jobs.go_on(run)
            st.rerun(scope="app")


def _can_go_on(run: Path, state: str) -> bool:
    return state in ("stopped", "failed") and any((run / CHECKPOINTS).glob("step-*.pt"))


def _seconds(told: dict[str, Any]) -> float | None:
    return told.get("eta_s" if jobs.is_live(told) else "elapsed_s")


def charts_config() -> dict[str, Any]:
    """Of plotly: no logo, and the bar of tools only under the pointer."""
    return {"displaylogo": False}
