// What all pictures share: frames, the axis of steps, findings on it, and one zoom for all.

const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };
const charts = {}; // name → { draw, timed }
const state = { quantity: 0, group: -1, stat: "usual", finding: -1, layer: -1, range: null, cell: null, log: false, paper: false };
const coarse = matchMedia("(pointer: coarse)");

function layout(extra) {
  const soft = color("soft"), grid = color("grid");
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: color("line"), tickfont: { color: soft, size: 12 }, ticks: "", automargin: false };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: color("ink"), size: 12.5 },
    margin: { l: 58, r: 14, t: 26, b: 44 }, showlegend: false, hovermode: "x unified",
    hoverlabel: { bgcolor: color("surface"), bordercolor: color("line"), font: { color: color("ink") } },
    dragmode: coarse.matches ? false : "zoom", ...extra,
    xaxis: { ...axis, ...(extra.xaxis || {}) }, yaxis: { ...axis, ...(extra.yaxis || {}) },
  };
}

function stepAxis() {
  const ends = [DATA.edges[0], DATA.edges[DATA.edges.length - 1]];
  return { range: state.range || ends, tickformat: ",d", title: { text: "step", standoff: 6, font: { size: 12, color: color("soft") } }, hoverformat: ",.0f", nticks: isNarrow() ? 5 : 9, zeroline: false };
}

const legend = () => ({ orientation: "h", yref: "container", y: 1, yanchor: "top", x: 0, font: { size: 12, color: color("soft") }, itemclick: false, itemdoubleclick: false });

// Room above a picture for its legend, which plotly would otherwise guess.
function above(traces, width) {
  const wide = Math.max(...traces.map((trace) => (trace.name || "").length)) * 7 + 54;
  const rows = Math.ceil(traces.length / Math.max(1, Math.floor((width - 72) / wide)));
  return 10 + 20 * rows;
}

function inside(everywhere) {
  const [low, high] = (!everywhere && state.range) || [DATA.edges[0], DATA.edges[DATA.edges.length - 1]];
  return DATA.findings.map((finding, i) => ({ ...finding, label: i + 1 })).filter((f) => f.step >= low && f.step <= high);
}

function marks(everywhere) {
  return inside(everywhere).map((finding) => ({
    type: "line", xref: "x", yref: "paper", x0: finding.step, x1: finding.step, y0: 0, y1: 1,
    line: { color: levelColor(finding.confidence), width: finding.label - 1 === state.finding ? 2.2 : 1.2, dash: finding.confidence === "HIGH" ? "solid" : finding.confidence === "MEDIUM" ? "dash" : "dot" },
  }));
}

function labels(width) {
  const [low, high] = state.range || [DATA.edges[0], DATA.edges[DATA.edges.length - 1]];
  const boxes = [];
  for (const finding of inside().sort((a, b) => a.step - b.step || a.label - b.label)) {
    const last = boxes[boxes.length - 1];
    if (last && ((finding.step - last.x) / (high - low || 1)) * width < 24) last.found.push(finding);
    else boxes.push({ x: finding.step, found: [finding] });
  }
  return boxes.map(({ x, found }) => {
    const numbers_ = found.map((finding) => finding.label).sort((a, b) => a - b);
    const order = ["HIGH", "MEDIUM", "LOW"];
    const surest = found.map((finding) => finding.confidence).sort((a, b) => order.indexOf(a) - order.indexOf(b))[0];
    return {
      x, y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false, yshift: 2,
      text: numbers_.length > 3 ? `${numbers_[0]}…${numbers_[numbers_.length - 1]}` : numbers_.join(" "),
      font: { size: 11, color: color("on-badge") }, bgcolor: levelColor(surest), borderpad: 2,
    };
  });
}

function empty(name, text) {
  const plot = byId("plot-" + name);
  plot.style.minHeight = "80px";
  plot.replaceChildren(element("p", text || "No data", { class: "empty" }));
}

// Paper has its own width, which a page that is being printed does not tell.
function widthOf(plot) {
  return state.paper ? (plot.closest(".pair") ? 328 : 680) : plot.clientWidth;
}

function show(name, traces, extra, height) {
  const plot = byId("plot-" + name);
  plot.style.minHeight = "";
  const made = layout({ height, ...extra });
  made.width = widthOf(plot);
  if (made.showlegend) {
    made.margin = { ...made.margin, t: (made.annotations || []).length ? above(traces, made.width) + 20 : above(traces, made.width) };
  }
  Plotly.react(plot, traces, made, CONFIG);
  if (!plot.dataset.bound) {
    plot.dataset.bound = "1";
    if (charts[name].timed) {
      plot.on("plotly_relayout", (change) => {
        if ("xaxis.range[0]" in change) zoomTo([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      });
      plot.on("plotly_doubleclick", () => zoomTo(null));
    }
  }
  return plot;
}

function zoomTo(range) {
  const first = DATA.edges[0], last = DATA.edges[DATA.edges.length - 1];
  const least = Math.min(2, last - first);
  let next = range && [Math.max(first, Math.min(...range)), Math.min(last, Math.max(...range))];
  if (next && next[1] - next[0] < least) next = [next[0], Math.min(last, next[0] + least)];
  if (next && next[0] <= first && next[1] >= last) next = null;
  if (String(next) === String(state.range)) return;
  state.range = next;
  document.querySelectorAll(".whole").forEach((button) => (button.hidden = !next));
  redraw((chart) => chart.timed);
}

function redraw(which) {
  for (const [name, chart] of Object.entries(charts)) {
    if (!which || which(chart)) chart.draw(name);
  }
}

function within(x, ...series) {
  if (!state.range) return series.flatMap((values) => Array.from(values));
  return series.flatMap((values) => Array.from(values).filter((_, i) => x[i] >= state.range[0] && x[i] <= state.range[1]));
}

// Limits of a vertical axis: what is seen, with a margin; a few wild values do not flatten the rest of a long series.
function limits(values, log) {
  const good = values.filter((value) => Number.isFinite(value) && (!log || value > 0)).map((value) => (log ? Math.log10(value) : value));
  if (!good.length) return log ? [-1, 1] : [0, 1];
  let low = good[0], high = good[0];
  for (const value of good) { low = Math.min(low, value); high = Math.max(high, value); }
  const margin = (high - low) * 0.06 || (log ? 0.3 : Math.abs(high) * 0.1 || 1);
  return [low - margin, high + margin];
}

function logTicks([low, high], count) {
  for (let stride = 1; stride < 400; stride += 1) {
    for (const subs of stride === 1 ? [[1, 2, 5], [1, 3], [1]] : [[1]]) {
      const found = [];
      for (let e = Math.ceil(Math.floor(low) / stride) * stride; e <= Math.ceil(high); e += stride) {
        for (const sub of subs) {
          const place = Math.log10(sub) + e;
          if (place >= low && place <= high) found.push(sub * 10 ** e);
        }
      }
      if (found.length < 2 && subs.length === 3) return [0.15, 0.5, 0.85].map((part) => Number((10 ** (low + part * (high - low))).toPrecision(3)));
      if (found.length <= count) return found;
    }
  }
  return [];
}

function logAxis(range, count) {
  const ticks = logTicks(range, count || 6);
  return { type: "log", range, tickvals: ticks, ticktext: ticks.map(number), fixedrange: true };
}
