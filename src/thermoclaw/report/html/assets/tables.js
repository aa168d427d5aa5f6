// The numbers behind the pictures, made when somebody asks for them.

const TABLE_ROWS = 40;

function picks(length) {
  const count = Math.min(length, TABLE_ROWS);
  return Array.from({ length: count }, (_, i) => Math.round((i * (length - 1)) / Math.max(count - 1, 1)));
}

const TABLES = {
  loss() {
    if (!DATA.loss) return null;
    const x = array(DATA.loss.meanX), y = array(DATA.loss.mean);
    return { heads: ["step", "loss, running mean"], rows: picks(x.length).map((i) => [whole(x[i]), number(y[i])]) };
  },
  heat() {
    const quantity = DATA.quantities[state.quantity], { first, count } = seenRows(), bins = DATA.edges.length - 1;
    const columns = picks(bins).filter((_, i, all) => i % Math.ceil(all.length / 8) === 0);
    const codes = array(quantity[state.stat] || quantity.usual), x = centers();
    const rows = Array.from({ length: count }, (_, i) => first + i).map((row) => [DATA.layers[row].name, ...columns.map((b) => cellText({ ...quantity, unit: "" }, codes[row * bins + b]))]);
    return { heads: ["layer", ...columns.map((b) => "step " + whole(x[b]))], rows };
  },
  lines: () => typeTable(DATA.quantities[state.quantity]),
  temperature: () => typeTable(DATA.quantities.find((q) => q.name === "temperature")),
  split() {
    if (!DATA.split) return null;
    const x = centers(), shares = DATA.split.parts.map((part) => array(part.share));
    return { heads: ["step", ...DATA.split.parts.map((part) => part.name + ", %")], rows: picks(x.length).map((i) => [whole(x[i]), ...shares.map((share) => number(share[i]))]) };
  },
  plane() {
    if (!DATA.plane) return null;
    const x = array(DATA.plane.x), y = array(DATA.plane.y);
    return { heads: ["layer", "σ/N", "T"], rows: DATA.plane.names.map((name, i) => [name, number(x[i]), number(y[i])]) };
  },
  displacement() {
    if (!DATA.displacement) return null;
    const { lags, msd } = DATA.displacement;
    return { heads: ["lag", "mean-squared displacement"], rows: lags.map((lag, i) => [whole(lag), number(msd[i])]) };
  },
  balance() {
    if (!DATA.balance) return null;
    return { heads: ["layer", "X", "from", "to"], rows: DATA.balance.layers.map(([place, ...ends]) => [DATA.layers[place].name, ...ends.map(number)]) };
  },
  walk() {
    if (!DATA.walk) return null;
    const x = array(DATA.walk.x), y = array(DATA.walk.y);
    return { heads: ["step", "‖θ − θ₀‖²"], rows: picks(x.length).map((i) => [whole(x[i]), number(y[i])]) };
  },
  schedule() {
    const x = centers(), high = DATA.schedule.map((item) => array(item.high));
    return { heads: ["step", ...DATA.schedule.map((item) => item.title + ", highest")], rows: picks(x.length).map((i) => [whole(x[i]), ...high.map((values) => number(values[i]))]) };
  },
};

function typeTable(quantity) {
  if (!quantity) return null;
  const x = centers(), lines = quantity.lines.map(array);
  const types = DATA.types.map((type, t) => t).filter((t) => lines[t]);
  return { heads: ["step", ...types.map((t) => DATA.types[t].name)], rows: picks(x.length).map((i) => [whole(x[i]), ...types.map((t) => number(lines[t][i]))]) };
}

function fillTable(details) {
  const box = details.querySelector(".scroll"), made = TABLES[details.dataset.table]();
  if (!made) return box.replaceChildren(element("p", "No data"));
  const table = element("table"), head = element("tr"), body = element("tbody"), top = element("thead");
  made.heads.forEach((text, i) => head.append(element("th", text, { scope: "col", class: i ? "n" : "" })));
  for (const row of made.rows) {
    const line = element("tr");
    row.forEach((text, i) => line.append(element(i ? "td" : "th", text, i ? { class: "n" } : { scope: "row", title: text })));
    body.append(line);
  }
  top.append(head);
  table.append(top, body);
  box.replaceChildren(table);
}

function refreshTables() {
  document.querySelectorAll("details.data[open]").forEach(fillTable);
}
