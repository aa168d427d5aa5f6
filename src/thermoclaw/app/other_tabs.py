"""The tabs Dynamics, Data and Export of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thermoclaw.app import charts, jobs
from thermoclaw.app.folders import Folders
from thermoclaw.app.needs import st
from thermoclaw.app.reading import read_data, read_heat, read_record
from thermoclaw.app.telling import findings_of, plain, tell
from thermoclaw.app.train_tab import REFRESH_S, charts_config
from thermoclaw.quantities import TABLE, Array
from thermoclaw.record import Record
from thermoclaw.train import results
from thermoclaw.train.checkpoints import BEST
from thermoclaw.train.checkpoints import FOLDER as CHECKPOINTS
from thermoclaw.train.export import FOLDER as EXPORTS
from thermoclaw.train.export import NAMES
from thermoclaw.train.log import FILE as LOG

_SIDE, _GAP = 72, 6  # pixels of a sample on the page, and between two
_MOST_BYTES = 1 << 30
_FILES = {
    f"{EXPORTS}/{NAMES['state']}": "weights, class names and shape",
    f"{EXPORTS}/{NAMES['program']}": "the model as a torch.export program",
    f"{EXPORTS}/{NAMES['onnx']}": "the model as ONNX",
    f"{CHECKPOINTS}/{BEST}": "checkpoint of the best test accuracy",
    LOG: "numbers by step",
    results.REPORT_PAGE: "report as a page",
    results.REPORT_TEXT: "report as text",
    results.REPORT_JSON: "report for programs",
    results.THERMO_FILE: "thermometer",
    results.DASHBOARD: "dashboard",
    results.HEAT_PICTURE: "thermometer's picture",
}


def dynamics(run: Path, told: dict[str, Any]) -> None:
    """Every quantity, the map of layers, heat and motion; drawn anew while the run goes on."""
    live = jobs.is_live(told)
    st.fragment(_dynamics, run_every=2 * REFRESH_S if live else None)(run, live)


def _dynamics(run: Path, live: bool) -> None:
    record = read_record(run)
    if not isinstance(record, Record):
        tell(record)
        return
    findings = findings_of(run, record, live=live)
    st.subheader("Over the steps")
    left, right = st.columns([1, 2])
    names = list(TABLE)
    name = left.selectbox("Quantity", names, index=names.index("temperature"), key="quantity")
    per_layer = TABLE[name].scope == "layer"
    layers = right.multiselect(
        "Layers",
        record.layer_names,
        max_selections=8,
        key="layers",
        disabled=not per_layer,
        placeholder="the median of every type",
        format_func=plain,
    )
    st.caption(plain(TABLE[name].meaning))
    chosen = [layer for layer in layers if layer in record.layer_names] if per_layer else []
    st.plotly_chart(charts.quantity_chart(record, name, chosen, findings), key="over_steps", config=charts_config())
    if per_layer:
        st.plotly_chart(charts.heat_chart(record, name), key="map", config=charts_config())
    st.subheader("Heat and motion")
    left, right = st.columns(2)
    left.plotly_chart(charts.plane_chart(record), key="plane", config=charts_config())
    left.caption("On the line the gradient is all noise; below it signal leads; above it successive gradients oppose.")
    heat = read_heat(run, record)
    if heat.get("lags"):
        right.plotly_chart(charts.displacement_chart(heat), key="displacement", config=charts_config())
        right.caption(f"As of {plain(_as_of(heat))}.")
    else:
        right.info(
            "Displacement of weights comes with the first pass of a run of `thermoclaw train`; of other runs, where a "
            "`Thermometer` stood beside them."
        )
    st.plotly_chart(charts.ratio_chart(heat), key="ratio", config=charts_config())
    st.caption(
        "The fluctuation–dissipation ratio with its 95 % interval, cut at the frame. Where it holds 1 and is narrow, "
        "the layer's norm is stationary; above 1 the norm shrinks, below it grows."
    )


def _as_of(heat: dict[str, Any]) -> str:
    return f"the last pass: {heat['verdict']}" if heat.get("verdict") else f"step {heat.get('step', '–')}"


def data(run: Path) -> None:
    """Classes, and a few images of each."""
    told, images, labels = read_data(run)
    if not told.get("classes"):
        st.info("Runs of `thermoclaw train` show their images here.")
        return
    shape = " × ".join(str(int(side)) for side in told.get("shape", ()))
    train, test = (sum(told.get(part, ())) for part in ("train", "test"))
    left_out = f"; {int(told['left_out'])} files were no images and were left out" if told.get("left_out") else ""
    st.caption(f"{train:,} images to learn from, {test:,} to test on, {shape} (channels, height, width){left_out}.")
    st.plotly_chart(charts.classes_chart(told), key="classes", config=charts_config())
    columns = st.columns(2)
    for number, name in enumerate(told["classes"]):
        mine = images[labels == number]
        if len(mine):
            column = columns[number % 2]
            column.markdown(f"**{plain(name)}**")
            column.image(_row(mine), width="content")


def export(folders: Folders, run: Path) -> None:
    """Everything that can be taken away."""
    there = {name: path for name in _FILES if (path := folders.file(run, name)) is not None}
    if not there:
        st.info("The model, the log and the report of a run of `thermoclaw train` come here.")
    for name, path in there.items():
        size = path.stat().st_size
        left, right = st.columns([3, 1])
        left.markdown(f"**{plain(path.name)}**: {_FILES[name]}, {_bytes(size)}")
        if size > _MOST_BYTES:
            right.caption("too large for a browser; it is in the run's folder")
        else:
            right.download_button(
                "Download",
                data=path.read_bytes,
                file_name=f"{run.name}-{path.name}",
                key=f"get {name}",
                on_click="ignore",
            )
    st.caption(f"The run is in {plain(run)}.")


def _row(images: Array) -> Array:
    """Images beside one another, enlarged, with clear gaps between them, [H, W, 4]."""
    times = max(1, round(_SIDE / max(images.shape[2:])))
    large = np.repeat(np.repeat(images, times, axis=2), times, axis=3)
    colors = np.broadcast_to(large, (len(large), 3, *large.shape[2:]))
    solid = np.concatenate([colors, np.full_like(large[:, :1], 255)], axis=1)
    spaced = np.pad(solid, ((0, 0), (0, 0), (0, 0), (0, _GAP)))
    return np.concatenate(list(spaced.transpose(0, 2, 3, 1)), axis=1)[:, :-_GAP]


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
