// What people do with the page: choose a quantity, follow a finding, keep a layer, change colors, print.

function fillPickers() {
  const quantity = byId("quantity"), group = byId("group");
  DATA.quantities.forEach((item, i) => quantity.append(element("option", item.title + (item.symbol.length < 8 ? ` (${item.symbol})` : ""), { value: i })));
  group.append(element("option", `all ${whole(DATA.layers.length)}`, { value: -1 }));
  DATA.groups.forEach((item, i) => group.append(element("option", `${item.label} (${item.count})`, { value: i })));
  byId("group-label").hidden = !DATA.groups.length;
  byId("stat-label").hidden = !DATA.quantities.some((item) => item.far);
  byId("log-loss").parentElement.hidden = !(DATA.loss && DATA.loss.positive);
  quantity.addEventListener("change", () => choose({ quantity: Number(quantity.value) }));
  group.addEventListener("change", () => choose({ group: Number(group.value), cell: null }));
  byId("stat").addEventListener("change", () => choose({ stat: byId("stat").value }));
  byId("log-loss").addEventListener("change", () => { state.log = byId("log-loss").checked; charts.loss.draw("loss"); });
}

function choose(change) {
  Object.assign(state, change);
  byId("quantity").value = state.quantity;
  byId("group").value = state.group;
  redraw((chart) => chart === charts.heat || chart === charts.lines);
  refreshTables();
}

function keepLayer(layer) {
  state.layer = layer;
  document.querySelectorAll(".chip").forEach((chip) => chip.setAttribute("aria-pressed", String(layer >= 0 && Number(chip.dataset.layer) === layer)));
  choose({});
}

function follow(index) {
  const finding = DATA.findings[index], found = DATA.quantities.findIndex((item) => item.name === finding.quantity);
  document.querySelectorAll(".finding").forEach((item, i) => item.classList.toggle("chosen", i === index));
  Object.assign(state, { finding: index, group: -1, cell: null, quantity: found >= 0 ? found : state.quantity });
  byId("quantity").value = state.quantity;
  byId("group").value = -1;
  const first = DATA.steps.first, last = DATA.steps.last, span = Math.max(20, (finding.raised - finding.step) * 3, (last - first) * 0.25);
  const before = state.range;
  zoomTo([finding.step - span / 2, Math.max(finding.raised, finding.step) + span / 2]);
  if (String(before) === String(state.range)) redraw((chart) => chart.timed);
  refreshTables();
}

function goTo(id) {
  byId(id).scrollIntoView({ block: "start" });
  byId("plot-heat").focus({ preventScroll: true });
}

function bindFindings() {
  document.querySelectorAll(".show").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => { follow(Number(button.dataset.finding)); goTo("loss"); });
  });
  document.querySelectorAll(".chip").forEach((chip) => {
    const place = DATA.shown[Number(chip.dataset.layer)];
    if (place === undefined) { chip.disabled = true; return; }
    chip.dataset.layer = place;
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      if (state.finding !== Number(chip.dataset.of)) follow(Number(chip.dataset.of));
      keepLayer(place);
      goTo("layers");
    });
  });
}

function bindTheme() {
  const group = document.querySelector(".theme"), buttons = group.querySelectorAll("button");
  const set = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.theme === name)));
  };
  group.hidden = false;
  let kept = "auto";
  try { kept = localStorage.getItem("thermoclaw-theme") || "auto"; } catch { /* a page in a frame may have no storage */ }
  set(["light", "dark"].includes(kept) ? kept : "auto");
  buttons.forEach((button) => button.addEventListener("click", () => {
    set(button.dataset.theme);
    try { localStorage.setItem("thermoclaw-theme", button.dataset.theme); } catch { /* as above */ }
    if (numbers) redraw();
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => numbers && redraw());
}

// Paper is light and narrow: pictures are drawn again for it, and closed texts open.
function bindPrint() {
  let opened = [], theme;
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".finding details:not([open])")];
    opened.forEach((details) => (details.open = true));
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    state.paper = true;
    redraw();
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => (details.open = false));
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    state.paper = false;
    redraw();
  });
}

function bindWidth() {
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; redraw(); } }, 120);
  });
}

async function begin() {
  bindTheme();
  if (!DATA) return;
  try {
    numbers = await unpacked("numbers");
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked("plotly"));
    document.head.append(script);
    DATA.shown = Object.fromEntries(DATA.places.map((place, i) => [place, i]));
    const first = DATA.findings.length ? DATA.quantities.findIndex((item) => item.name === DATA.findings[0].quantity) : 0;
    state.quantity = Math.max(0, first);
    state.log = Boolean(DATA.loss && DATA.loss.steep);
    byId("log-loss").checked = state.log;
    fillPickers();
    byId("quantity").value = state.quantity;
    document.querySelectorAll(".controls").forEach((controls) => (controls.hidden = false));
    document.querySelectorAll(".whole").forEach((button) => button.addEventListener("click", () => zoomTo(null)));
    document.querySelectorAll("details.data").forEach((details) => details.addEventListener("toggle", () => details.open && fillTable(details)));
    redraw();
    bindFindings();
    bindPrint();
    bindWidth();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    byId("trouble").hidden = false;
    byId("trouble").textContent = typeof DecompressionStream === "undefined"
      ? "This browser is too old to draw the pictures; one from 2023 or later can. Texts and tables are complete."
      : `The pictures could not be drawn: ${error.message}`;
    throw error;
  }
}

begin();
