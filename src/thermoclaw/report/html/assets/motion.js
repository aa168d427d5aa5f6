// Pictures of where the weights go: displacement by lag, distance from the start, balance of norms.

const signed = (value, digits) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
const layersText = (count) => `${whole(count)} layer${count === 1 ? "" : "s"}`;
const titled = (text) => ({ title: { text, standoff: 6, font: { size: 12, color: color("soft") } } });

// A power with its interval, where there is one.
function powerText([value, low, high]) {
  const range = low === null || high === null ? "" : ` (95 % interval ${signed(low, 2)} to ${signed(high, 2)})`;
  return signed(value, 2) + range;
}

const LOOSE = 1.4;
const MOTIONS = {
  ballistic: "they go straight on", superdiffusive: "they explore with a drift", diffusive: "they wander at random",
  confined: "they are held in a bowl", stuck: "they shake on the spot", unknown: "there are too few samples to tell how they move",
};

charts.displacement = {
  draw(name) {
    const found = DATA.displacement;
    if (!found || found.lags.length < 3) {
      return empty(name, found ? "Too few samples of the weights to tell" : "Positions of weights were not sampled in this run. thermoclaw.Thermometer(observer), with thermometer.step() after each optimizer step, adds them.");
    }
    const { lags, msd, power } = found;
    let off = 1; // how far the points lie from the line, as a factor
    const traces = [{ x: lags, y: msd, mode: "markers", marker: { size: 8, color: color("accent") }, hovertemplate: "lag %{x:,.0f}: %{y:.3g}<extra></extra>", name: "measured" }];
    if (power[0] !== null) {
      const apart = msd.map((value, i) => Math.log(value) - power[0] * Math.log(lags[i])), level = apart.reduce((sum, value) => sum + value, 0) / lags.length;
      off = Math.exp(Math.sqrt(apart.reduce((sum, value) => sum + (value - level) ** 2, 0) / lags.length));
      traces.push({ x: lags, y: lags.map((lag) => Math.exp(level + power[0] * Math.log(lag))), mode: "lines", line: { color: color("medium"), width: 1.6 }, hoverinfo: "skip", name: "τ^" + signed(power[0], 2) });
    }
    show(name, traces, { hovermode: "closest", dragmode: false, xaxis: { ...logAxis(limits(lags, true), 5), ...titled("lag τ, steps") }, yaxis: logAxis(limits(msd, true)), showlegend: power[0] !== null, legend: legend() }, 320);
    byId("caption-displacement").textContent = `Mean-squared displacement of sampled weights over the second half of the samples, up to step ${whole(found.step)}` +
      (power[0] === null ? "." : `, grows with the power ${powerText(power)} of the lag: ${MOTIONS[found.motion]}.`) + (off > LOOSE ? ` No single power fits: the points lie off the line by a factor of ${number(off)}.` : "") +
      (found.coefficient === null ? "" : ` D = ${number(found.coefficient)} a weight and step at the longest lag.`);
  },
};

charts.walk = {
  draw(name) {
    const walk = DATA.walk;
    if (!walk) return empty(name, "No weight has moved");
    const x = array(walk.x), y = array(walk.y);
    const wide = limits(Array.from(x), true), tall = limits(Array.from(y), true);
    const marks_ = marks(true).filter((line) => line.x0 > 10 ** wide[0]);
    show(name, [{ x, y, mode: "lines", line: { color: color("accent"), width: 2 }, hovertemplate: "step %{x:,.0f}: %{y:.3g}<extra></extra>" }],
      { hovermode: "closest", dragmode: false, xaxis: { ...logAxis(wide, isNarrow() ? 4 : 6), ...titled("step") }, yaxis: logAxis(tall), shapes: marks_ }, 320);
    byId("caption-walk").textContent = "‖θ − θ₀‖² of all weights together." + (walk.power[0] === null ? "" : ` From step ${whole(walk.from)} on it grows with the power ${powerText(walk.power)} of the step: 1 is a random walk, 2 straight ahead, 0 at rest.`);
  },
};

const NEAR_X = 0.5, MOST_X = 1e6, TICKS_X = [1, 0, 2, -10, 10, -100, 100, -1000, 1000, -1e4, 1e4, -1e5, 1e5];

charts.balance = {
  draw(name) {
    const found = DATA.balance;
    if (!found) return empty(name, "Too few steps to tell whether norms rest");
    const place = (value) => Math.asinh((Math.min(Math.max(value, -MOST_X), MOST_X) - 1) / NEAR_X);
    const rows = found.layers.map(([at, ...ends]) => ({ at, ends, layer: DATA.layers[at] }));
    const places = rows.flatMap((row) => row.ends.map(place)), reach = Math.max(place(2), ...places.map(Math.abs)) * 1.04;
    const traces = DATA.types.map((type, t) => {
      const mine = rows.filter((row) => row.layer.type === t), middle = mine.map((row) => place(row.ends[0]));
      return {
        x: middle, y: mine.map((row) => row.at), mode: "markers", name: literal(type.name), marker: { size: rows.length > 60 ? 4 : 7, color: typeColor(type) },
        error_x: { type: "data", symmetric: false, thickness: rows.length > 60 ? 1 : 1.6, width: 0, color: typeColor(type), array: mine.map((row, i) => place(row.ends[2]) - middle[i]), arrayminus: mine.map((row, i) => middle[i] - place(row.ends[1])) },
        text: mine.map((row) => `${literal(elided(row.layer.name, 60))}<br>X ${row.ends.map((end) => signed(end, 2)).join(", ").replace(", ", " [")}]`), hovertemplate: "%{text}<extra></extra>",
      };
    }).filter((trace) => trace.x.length);
    const count = DATA.layers.length, height = Math.min(Math.max(110 + 18 * count, 200), 640), letters = isNarrow() ? 12 : 24;
    const every = Math.ceil((count * 15) / (height - 90)), ticks = DATA.layers.map((_, i) => i).filter((i) => i % every === 0);
    const apart = (44 * 2 * reach) / (widthOf(byId("plot-" + name)) - 34 - 7 * letters);
    const xs = TICKS_X.reduce((kept, x) => (Math.abs(place(x)) <= reach && kept.every((other) => Math.abs(place(x) - place(other)) >= apart) ? [...kept, x] : kept), []);
    show(name, traces, {
      hovermode: "closest", dragmode: false, margin: { l: 20 + 7 * letters, r: 14, t: 26, b: 44 }, showlegend: true, legend: legend(),
      xaxis: { range: [-reach, reach], fixedrange: true, tickangle: 0, tickvals: xs.map(place), ticktext: xs.map((x) => (x < 1e4 && x > -1e4 ? whole(x).replace("-", "−") : number(x))), zeroline: false, ...titled(isNarrow() ? "X" : "X: below 1 the norm grows, above 1 it shrinks") },
      yaxis: { range: [count - 0.5, -0.5], fixedrange: true, tickvals: ticks, ticktext: ticks.map((i) => literal(elided(DATA.layers[i].name, letters))), zeroline: false, showgrid: false },
      shapes: [{ type: "line", xref: "x", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: color("soft"), width: 1.2 } }],
    }, height);
    const untold = found.known - found.rest - found.shrink - found.grow;
    byId("caption-balance").textContent = `X = −2⟨θ·Δ⟩/⟨‖Δ‖²⟩ from step ${whole(found.from)} on, with 95 % intervals from ten stretches of it; 1 where the norm is stationary, for any optimizer. ` +
      `Of ${layersText(found.all)} ${whole(found.rest)} rest, ${whole(found.shrink)} shrink, ${whole(found.grow)} grow` +
      (untold ? `; of ${whole(untold)} the interval is too wide to tell` : "") +
      (found.all > found.known ? `; ${whole(found.all - found.known)} did not move, or have too few steps.` : ".");
  },
};
