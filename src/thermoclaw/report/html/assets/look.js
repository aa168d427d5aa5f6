// How things look: colors of the theme, numbers and names as texts, elements that hold text and never markup.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e4) {
    const text = size < 1000 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString("en-US");
    return text.replace("-", "−");
  }
  const [mantissa, exponent] = value.toExponential(1).split("e");
  const power = "10" + [...String(Number(exponent))].map((letter) => SUPERSCRIPT[letter]).join("");
  const lead = mantissa.replace(/\.0$/, "").replace("-", "−");
  return lead === "1" ? power : lead + "·" + power;
}

const whole = (value) => Math.round(value).toLocaleString("en-US");

function elided(name, length) {
  if (name.length <= length) return name;
  const head = Math.floor(length * 0.4);
  return name.slice(0, head) + "…" + name.slice(name.length - (length - head - 1));
}

// plotly reads a few tags in its texts; nothing that a run brings may be one.
const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function element(tag, text, attributes) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  return made;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const isNarrow = () => widthOf(byId("plot-loss")) < 560;

// Cividis, and two poles around a middle that recedes into the page; told apart with any kind of color vision.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const POLES = ["#2166ac", "#4393c3", "#92c5de", "#f3f3f1", "#f4a582", "#d6604d", "#b2182b"];
const POLES_DARK = ["#7db8e8", "#4a86b8", "#2d5474", "#262b30", "#7a4a30", "#c46a42", "#ff9d6b"];

function ramp(quantity) {
  return quantity.center === null ? CIVIDIS : isDark() ? POLES_DARK : POLES;
}

const stops = (colors) => colors.map((shade, i) => [i / (colors.length - 1), shade]);
const levelColor = (confidence) => color(confidence.toLowerCase());

function typeColor(type) {
  const faint = { "#000000": "#ffffff", "#5E3C99": "#b39ddb", "#0072B2": "#4aa3dd", "#7A7A7A": "#a0a0a0" };
  return (isDark() && faint[type.color]) || type.color;
}
