// Pictures of the run as a whole: loss, split, plane, schedule.

charts.loss = {
  timed: true,
  draw(name) {
    const loss = DATA.loss;
    if (!loss) return empty(name, "No loss was given");
    const x = array(loss.x), y = array(loss.y), meanX = array(loss.meanX), mean = array(loss.mean);
    const log = state.log && loss.positive;
    const traces = [
      { x, y, mode: loss.window > 1 ? "lines" : "lines+markers", line: { color: loss.window > 1 ? color("raw") : color("accent"), width: 1.2 }, marker: { size: 4 }, name: "loss", hovertemplate: "%{y:.4g}", connectgaps: false },
    ];
    if (loss.window > 1) traces.push({ x: meanX, y: mean, mode: "lines", line: { color: color("accent"), width: 2.2 }, name: "running mean", hovertemplate: "%{y:.4g}" });
    if (loss.validation.length) {
      traces.push({ x: loss.validation.map((v) => v[0]), y: loss.validation.map((v) => v[1]), mode: "lines+markers", line: { color: color("medium"), width: 1.4, dash: "dot" }, marker: { size: 6, symbol: "diamond" }, name: "validation", hovertemplate: "%{y:.4g}" });
    }
    if (loss.lost.length) {
      traces.push({ x: loss.lost, y: loss.lost.map(() => 0.03), yaxis: "y2", mode: "markers", marker: { symbol: "x", size: 7, color: color("high") }, name: "not finite", hovertemplate: "no finite loss" });
    }
    const values = within(x, y).concat(within(loss.validation.map((v) => v[0]), loss.validation.map((v) => v[1])));
    const range = limits(values, log);
    const plot = byId("plot-" + name);
    show(name, traces, {
      xaxis: stepAxis(), yaxis: log ? logAxis(range) : { range, fixedrange: true, nticks: 7 },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      shapes: marks(), annotations: labels(widthOf(plot) - 72), showlegend: traces.length > 2,
      legend: { ...legend(), x: 1, xanchor: "right" },
    }, isNarrow() ? 240 : 280);
    byId("caption-loss").textContent = (loss.thinned ? "Least and greatest of each stretch" : "Every recorded loss") + (loss.window > 1 ? `, with the running mean over ${whole(loss.window)} rows.` : ".") +
      (DATA.findings.length ? " Numbers mark the steps since which findings hold." : "") + (loss.numLost ? ` ${whole(loss.numLost)} rows without a finite loss, the first at step ${whole(loss.firstLost)}.` : "");
  },
};

charts.split = {
  timed: true,
  draw(name) {
    const split = DATA.split;
    if (!split) return empty(name, "No entropy was produced");
    const x = centers();
    const traces = split.parts.map((part) => ({
      x, y: array(part.share), stackgroup: "parts", mode: "lines", line: { width: 0.5, color: part.color }, fillcolor: part.color,
      name: part.name, hovertemplate: "%{y:.1f} %",
    }));
    show(name, traces, { xaxis: stepAxis(), yaxis: { range: [0, 100], ticksuffix: " %", fixedrange: true, nticks: 5 }, shapes: marks(), showlegend: true, legend: { ...legend(), traceorder: "normal" } }, 280);
    const ratio = Array.from(array(split.ratio)).filter(Number.isFinite);
    const last = ratio.slice(-Math.max(1, Math.floor(ratio.length / 10)));
    byId("caption-split").textContent = last.length ? `Late in the run R_ie, overhead per productive work, is ${number(last.sort((a, b) => a - b)[Math.floor(last.length / 2)])}. Below 2 is usual.` : "";
  },
};

charts.plane = {
  draw(name) {
    const plane = DATA.plane;
    if (!plane) return empty(name, "No heat was measured");
    const x = array(plane.x), y = array(plane.y);
    const traces = DATA.types.map((type, t) => {
      const mine = Array.from(x.keys()).filter((i) => plane.types[i] === t);
      return { x: mine.map((i) => x[i]), y: mine.map((i) => y[i]), text: mine.map((i) => literal(plane.names[i])), mode: "markers", marker: { size: 8, color: typeColor(type), line: { width: 1, color: color("bg") } }, name: literal(type.name), hovertemplate: "%{text}<br>T %{y:.3g}<br>σ/N %{x:.3g}<extra></extra>" };
    }).filter((trace) => trace.x.length);
    const wide = limits(Array.from(x), true), low = 10 ** wide[0], high = 10 ** wide[1];
    const tall = limits([...y, low / 2, high / 2], true);
    traces.push({ x: [low, high], y: [low / 2, high / 2], mode: "lines", line: { color: color("soft"), width: 1 }, name: "all noise", hoverinfo: "skip" });
    show(name, traces, { hovermode: "closest", dragmode: false, xaxis: { ...logAxis(wide, isNarrow() ? 4 : 5), title: { text: "dissipation a weight, σ/N", standoff: 6, font: { size: 12, color: color("soft") } } }, yaxis: logAxis(tall), showlegend: true, legend: legend() }, 320);
    byId("caption-plane").textContent = `Means from step ${whole(plane.from)} on. On the line, T = σ/2N, a gradient is all noise; the further below it, the more of it is signal.`;
  },
};

charts.schedule = {
  timed: true,
  draw(name) {
    const moving = DATA.schedule.filter((item) => item.moves);
    const drawn = moving.length ? moving : DATA.schedule.slice(0, 1);
    if (!drawn.length) return empty(name, "No setting is known");
    const x = centers(), count = drawn.length, gap = 0.16 / count, each = (1 - gap * (count - 1)) / count;
    const traces = [], axes = {}, notes = [];
    drawn.forEach((item, i) => {
      const axis = i ? "yaxis" + (i + 1) : "yaxis", short = i ? "y" + (i + 1) : "y";
      const high = array(item.high), low = array(item.low), top = 1 - i * (each + gap);
      const range = limits(within(x, high, low || high), false);
      axes[axis] = { ...layout({}).yaxis, domain: [Math.max(0, top - each), top], range: [Math.min(0, range[0]), range[1]], fixedrange: true, nticks: 4, exponentformat: "power" };
      traces.push({ x, y: high, yaxis: short, mode: "lines", line: { color: color("accent"), width: 1.8 }, name: item.name + (low ? ", highest" : ""), hovertemplate: "%{y:.4g}" });
      if (low) traces.push({ x, y: low, yaxis: short, mode: "lines", line: { color: color("accent"), width: 1.2, dash: "dot" }, name: item.name + ", lowest", hovertemplate: "%{y:.4g}" });
      notes.push({ x: 0, xref: "paper", y: top, yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, text: item.title, font: { size: 12, color: color("soft") } });
    });
    show(name, traces, { xaxis: { ...stepAxis(), anchor: count > 1 ? "y" + count : "y" }, ...axes, shapes: marks(), annotations: notes }, 90 + 120 * count);
    const still = DATA.schedule.filter((item) => !drawn.includes(item)).map((item) => `${item.title} stays at ${number(array(item.high)[array(item.high).length - 1])}`);
    byId("caption-schedule").textContent = still.length ? still.join(". ") + "." : "";
  },
};
