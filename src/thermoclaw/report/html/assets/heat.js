// The map of layers over steps: which rows are seen, what a cell says, and a cursor for the keyboard.

const HEIGHT = 660;

function seenRows() {
  const group = DATA.groups[state.group];
  const first = group ? group.first : 0, count = group ? group.count : DATA.layers.length;
  return { first, count };
}

function seenBins() {
  const last = DATA.edges.length - 2;
  if (!state.range) return [0, last];
  const left = DATA.edges.findIndex((edge, i) => i <= last && DATA.edges[i + 1] > state.range[0]);
  const right = DATA.edges.findIndex((edge) => edge >= state.range[1]) - 1;
  return [Math.max(left, 0), right < 0 ? last : right];
}

function rowTicks({ first, count }) {
  const letters = isNarrow() ? 13 : 27;
  if (count <= 45) {
    const rows = Array.from({ length: count }, (_, i) => i);
    return { tickvals: rows, ticktext: rows.map((i) => literal(elided(DATA.layers[first + i].name, letters))) };
  }
  if (DATA.groups.length && state.group < 0) {
    const taken = [], apart = (count / HEIGHT) * 13; // rows that a line of text is high; larger groups go first
    const shown = [...DATA.groups].sort((a, b) => b.count - a.count || a.first - b.first).filter((g) => {
      const middle = g.first + (g.count - 1) / 2;
      return taken.every((other) => Math.abs(other - middle) >= apart) && taken.push(middle);
    });
    return { tickvals: shown.map((g) => g.first + (g.count - 1) / 2), ticktext: shown.map((g) => literal(elided(g.label, letters))) };
  }
  const every = Math.ceil(count / 40), rows = Array.from({ length: Math.ceil(count / every) }, (_, i) => i * every);
  return { tickvals: rows, ticktext: rows.map((i) => literal(elided(DATA.layers[first + i].name, letters))) };
}

function heatRows(quantity, { first, count }) {
  const bins = DATA.edges.length - 1, codes = array(quantity[state.stat] || quantity.usual);
  const z = [], flags = [];
  let lost = false, zero = false, open = false;
  for (let row = 0; row < count; row += 1) {
    const places = new Float32Array(bins), words = new Array(bins).fill(null);
    for (let b = 0; b < bins; b += 1) {
      const code = codes[(first + row) * bins + b];
      places[b] = placeOf(quantity, code);
      if (code === NOT_FINITE) { words[b] = 1; lost = true; }
      else if (code === NOT_POSITIVE) { words[b] = 0; zero = true; }
      else if (code === UNDEFINED) open = true;
    }
    z.push(places);
    flags.push(words);
  }
  return { z, flags, lost, zero, open };
}

function rowShapes({ first, count }) {
  const boxes = [], last = DATA.edges[DATA.edges.length - 1];
  const box = (low, high, from, shade, width) => ({ type: "rect", xref: "x", yref: "y", x0: from, x1: last, y0: low - 0.5, y1: high + 0.5, line: { color: shade, width }, fillcolor: "rgba(0,0,0,0)" });
  const finding = DATA.findings[state.finding];
  if (finding) {
    const rows = finding.layers.map((row) => row - first).filter((row) => row >= 0 && row < count);
    for (let i = 0; i < rows.length; ) {
      let j = i;
      while (j + 1 < rows.length && rows[j + 1] === rows[j] + 1) j += 1;
      boxes.push(box(rows[i], rows[j], finding.step, levelColor(finding.confidence), 2));
      i = j + 1;
    }
  }
  const kept = state.layer - first;
  if (kept >= 0 && kept < count) boxes.push(box(kept, kept, DATA.edges[0], color("ink"), 2));
  if (state.cell && state.cell.row >= first && state.cell.row < first + count) {
    const { row, bin } = state.cell;
    boxes.push({ type: "rect", xref: "x", yref: "y", x0: DATA.edges[bin], x1: DATA.edges[bin + 1], y0: row - first - 0.5, y1: row - first + 0.5, line: { color: color("ink"), width: 2.5 } });
  }
  return boxes;
}

charts.heat = {
  timed: true,
  draw(name) {
    const quantity = DATA.quantities[state.quantity], rows = seenRows(), colors = ramp(quantity);
    const { z, flags, lost, zero, open } = heatRows(quantity, rows);
    const y = Array.from({ length: rows.count + 1 }, (_, i) => i - 0.5);
    const heat = { type: "heatmap", x: DATA.edges, y, hoverinfo: "none", showscale: false, zsmooth: false };
    const traces = [{ ...heat, z, zmin: quantity.colors[0], zmax: quantity.colors[1], colorscale: stops(colors) }];
    if (lost || zero) traces.push({ ...heat, z: flags, zmin: 0, zmax: 1, colorscale: [[0, zeroColor()], [1, lostColor()]], hoverinfo: "skip" });
    const height = Math.max(130, Math.min(rows.count <= 12 ? rows.count * 24 : rows.count * 17, HEIGHT)) + 72;
    const plot = show(name, traces, {
      height, hovermode: "closest", margin: { l: isNarrow() ? 100 : 196, r: 14, t: 24, b: 44 },
      xaxis: { ...stepAxis(), showgrid: false }, yaxis: { range: [rows.count - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false, ...rowTicks(rows) },
      plot_bgcolor: color("sunk"), shapes: [...marks(), ...rowShapes(rows)], annotations: labels(widthOf(byId("plot-heat")) - 210),
    }, height);
    bindHeat(plot);
    key(quantity, colors, { lost, zero, open });
    explain(quantity);
  },
};

const lostColor = () => (isDark() ? "#ffffff" : "#000000");
const zeroColor = () => (isDark() ? "#5b5f66" : "#b9bcc0");

function key(quantity, colors, { lost, zero, open }) {
  const [low, high] = quantity.colors, box = element("div", null, { class: "ramp" });
  const bar = element("i");
  bar.style.background = `linear-gradient(to right, ${colors.join(",")})`;
  box.append(element("span", number(valueOf(quantity, low))), bar, element("span", number(valueOf(quantity, high))));
  const parts = [box];
  const swatch = (shade, text) => {
    const made = element("span", null, { class: "swatch" }), dot = element("i");
    dot.style.background = shade;
    made.append(dot, text);
    parts.push(made);
  };
  if (quantity.center !== null) swatch(colors[(colors.length - 1) / 2], number(quantity.center));
  if (lost) swatch(lostColor(), "not finite");
  if (zero) swatch(zeroColor(), "zero or below");
  if (open) swatch(color("sunk"), "not defined");
  byId("key").replaceChildren(...parts);
}

function explain(quantity) {
  const bands = element("span", null, { class: "bands" });
  for (const [range, meaning] of quantity.bands) {
    const band = element("span");
    band.append(element("b", range), " " + meaning);
    bands.append(band);
  }
  byId("explain").replaceChildren(element("span", quantity.meaning), element("span", `${quantity.symbol} = ${quantity.formula}`, { class: "formula" }), bands);
  const finding = DATA.findings[state.finding];
  const outlined = finding ? ` Outlined: the layers of finding ${state.finding + 1}, ${finding.layers.length ? "since" : "which holds for the whole run, from"} step ${whole(finding.step)}.` : "";
  const cells = DATA.rowsPerBin > 1 ? `A column gathers up to ${whole(DATA.rowsPerBin)} recorded steps.` : "A column is a recorded step.";
  const held = quantity.held ? " Looked at every few steps only: a value is shown until the next." : "";
  byId("caption-heat").textContent = cells + held + outlined + (coarse.matches ? " Touch a layer to keep it for the lines below." : " Drag to zoom, double-click for the whole run; a click keeps a layer for the lines below.");
}

function cellWords({ row, bin }) {
  const quantity = DATA.quantities[state.quantity], layer = DATA.layers[row], bins = DATA.edges.length - 1;
  const code = array(quantity[state.stat] || quantity.usual)[row * bins + bin];
  const from = Math.ceil(DATA.edges[bin]), to = Math.floor(DATA.edges[bin + 1]);
  const steps = to > from ? `steps ${whole(from)}–${whole(to)}` : `step ${whole(from)}`;
  return { name: layer.name, text: `${steps}: ${quantity.symbol || quantity.title} ${cellText(quantity, code)}` };
}

function cellOf(point) {
  const x = point.x, rows = seenRows();
  let bin = DATA.edges.findIndex((edge) => edge > x) - 1;
  if (bin < 0) bin = DATA.edges.length - 2;
  return { row: rows.first + Math.round(point.y), bin };
}

function tip(words, event) {
  const box = byId("tip");
  box.hidden = !words;
  if (!words) return;
  box.replaceChildren(element("b", words.name), element("span", words.text));
  const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 12 : event.clientY + 18}px`;
}

function say(cell) {
  const words = cellWords(cell);
  byId("readout").textContent = `${words.name}, ${words.text}`;
}

// Steps around the cursor, or around the middle of what is seen.
function zoomBy(factor) {
  const first = DATA.edges[0], last = DATA.edges[DATA.edges.length - 1];
  const [low, high] = state.range || [first, last];
  const middle = state.cell ? centers()[state.cell.bin] : (low + high) / 2, width = (high - low) * factor;
  const start = Math.max(first, Math.min(middle - width / 2, last - width));
  zoomTo([start, start + width]);
}

function bindHeat(plot) {
  if (plot.dataset.heat) return;
  plot.dataset.heat = "1";
  plot.on("plotly_hover", ({ points, event }) => tip(cellWords(cellOf(points[0])), event));
  plot.on("plotly_unhover", () => tip(null));
  plot.on("plotly_click", ({ points }) => {
    const cell = cellOf(points[0]);
    say(cell);
    keepLayer(cell.row === state.layer ? -1 : cell.row);
  });
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9] };
    if (event.key === "Escape") { state.cell = null; keepLayer(-1); byId("readout").textContent = ""; return; }
    if (event.key === "Enter" && state.cell) { keepLayer(state.cell.row); return; }
    const closer = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (closer) { zoomBy(closer); return; }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const { first, count } = seenRows(), [left, right] = seenBins();
    const from = state.cell || { row: first - Math.sign(move[0]), bin: left };
    state.cell = { row: Math.max(first, Math.min(first + count - 1, from.row + move[0])), bin: Math.max(left, Math.min(right, from.bin + move[1])) };
    charts.heat.draw("heat");
    say(state.cell);
  });
}
