// Lines by type of layer, and the line of the layer that is kept.

function typeLines(name, quantity, caption) {
  const x = centers(), log = quantity.scale.kind === "log";
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const traces = [], seen = [];
  DATA.types.forEach((type, t) => {
    const y = array(quantity.lines[t]);
    if (!y) return;
    traces.push({ x, y, mode: "lines", line: { color: typeColor(type), width: 1.9, dash: dashes[t % dashes.length] }, name: literal(type.name), hovertemplate: "%{y:.3g}" });
    seen.push(y);
  });
  if (state.layer >= 0 && caption) {
    const y = layerLine(quantity, state.layer);
    traces.push({ x, y, mode: "lines", line: { color: color("ink"), width: 2.6 }, name: literal(elided(DATA.layers[state.layer].name, 28)), hovertemplate: "%{y:.3g}" });
    seen.push(y);
  }
  if (!seen.length) return empty(name);
  const range = limits(within(x, ...seen), log);
  show(name, traces, {
    xaxis: stepAxis(), yaxis: log ? logAxis(range) : { range, fixedrange: true, nticks: 6 }, shapes: marks(),
    showlegend: true, legend: legend(),
  }, 280);
}

function layerLine(quantity, layer) {
  const count = DATA.edges.length - 1, codes = array(quantity[state.stat] || quantity.usual);
  return Array.from({ length: count }, (_, b) => valueOf(quantity, placeOf(quantity, codes[layer * count + b])));
}

charts.lines = {
  timed: true,
  draw(name) {
    const quantity = DATA.quantities[state.quantity];
    typeLines(name, quantity, true);
    byId("lines-head").textContent = `${quantity.title} by type of layer`;
    byId("caption-lines").textContent = "Median over the layers of each type." + (state.layer >= 0 ? ` Strong line: ${DATA.layers[state.layer].name}.` : "");
  },
};

charts.temperature = {
  timed: true,
  draw(name) {
    const quantity = DATA.quantities.find((q) => q.name === "temperature");
    if (!quantity) return empty(name, "No temperature was measured");
    typeLines(name, quantity, false);
    byId("caption-temperature").textContent = "T = (η/2)·tr Σ/N, the median over the layers of each type.";
  },
};
