// What the page was given: texts in DATA, arrays in one block of numbers.

const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);
const VIEWS = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array, f8: Float64Array };
let numbers = null;

async function unpacked(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function array(place) {
  return place ? new VIEWS[place.kind](numbers, place.at, place.length) : null;
}

function centers() {
  return DATA.edges.slice(1).map((edge, i) => (edge + DATA.edges[i]) / 2);
}

// Codes of the map's cells, as the module that made them numbers them.
const UNDEFINED = 0, NOT_FINITE = 1, NOT_POSITIVE = 2, FIRST = 3, LAST = 65535;

function placeOf(quantity, code) {
  const [low, high] = quantity.ends;
  return code < FIRST ? NaN : low + ((high > low ? high - low : 1) * (code - FIRST)) / (LAST - FIRST);
}

function valueOf(quantity, place) {
  const { kind, center, near } = quantity.scale;
  if (kind === "log") return 10 ** place;
  return kind === "signed" ? center + near * Math.sinh(place) : place;
}

function placed(quantity, value) {
  const { kind, center, near } = quantity.scale;
  if (kind === "log") return value > 0 ? Math.log10(value) : NaN;
  return kind === "signed" ? Math.asinh((value - center) / near) : value;
}

function cellText(quantity, code) {
  if (code === UNDEFINED) return "not defined";
  if (code === NOT_FINITE) return "not finite";
  if (code === NOT_POSITIVE) return "zero or below";
  return number(valueOf(quantity, placeOf(quantity, code))) + (quantity.unit ? " " + quantity.unit : "");
}
