// Data in, DOM out. Text goes in as text nodes only; nothing here parses markup.

import { PROFILE, SCORES, STAGES, UNSCORED, dishOf, explain, milliseconds, percent, size } from "./words.js";

/** el("p", {class: "x", onclick: f, hidden: true}, "text", node): false and null children are left out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== false && child != null));
  return node;
}

/** Lengths come through CSSOM: the Content-Security-Policy forbids style attributes. */
function bar(share, className = "meter") {
  const node = el("span", { class: className, "aria-hidden": "true" }, el("span", {}));
  node.style.setProperty("--share", Math.max(0, Math.min(1, share)).toFixed(4));
  return node;
}

function card(title, className, ...children) {
  return el("section", { class: `card ${className}` }, title && el("h3", {}, title), ...children);
}

/** Before the first photo: how to read a score. */
export function welcome() {
  const rows = SCORES.slice(1).map(({ word, meaning }, index) =>
    el("li", {},
      el("span", { class: "step-number" }, String(index + 1)),
      el("span", {}, el("strong", {}, word), el("span", { class: "muted" }, meaning))));
  return [card("How to read the score", "legend", el("ol", {}, ...rows.reverse()))];
}

export function waiting(item, ahead) {
  const text = item.state === "queued" && ahead > 0 ? `In line, ${ahead} ahead…` : "Scoring…";
  return [card(null, "busy",
    el("h2", {}, text),
    el("progress", { "aria-label": `Scoring ${item.name}` }),
    el("p", { class: "muted" }, "This usually takes less than a second."))];
}

export function failure(item, { retry, askKey }) {
  const [title, next] = explain(item.error);
  const needsKey = item.state === "key";
  return [card(null, "failure",
    el("h2", {}, title),
    el("p", { class: "lead" }, next),
    needsKey && el("button", { type: "button", class: "primary", onclick: askKey }, "Enter key"),
    !needsKey && item.error.retryable && retryButton(item.error.retryAt, retry),
    el("p", { class: "muted small code" }, `Code ${item.error.code}`,
      item.error.requestId && ` · request ${item.error.requestId}`))];
}

/** Counts down to `retryAt` before it works; the label carries the state, and focus stays where it is. */
function retryButton(retryAt, retry) {
  const left = () => Math.ceil((retryAt - Date.now()) / 1000);
  const button = el("button", { type: "button", class: "primary", onclick: () => left() <= 0 && retry() });
  const tick = () => {
    const seconds = left();
    button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    button.setAttribute("aria-disabled", String(seconds > 0));
    return seconds > 0;
  };
  if (tick()) {
    const timer = setInterval(() => (tick() && button.isConnected) || clearInterval(timer), 250);
  }
  return button;
}

export function outcome({ result, stages, elapsed }, { copy }) {
  return [
    headline(result),
    result.tip && card("Tip", "tip",
      el("p", { class: "lead" }, result.tip.text),
      el("p", { class: "muted small" }, "Source: ", el("cite", {}, result.tip.source))),
    result.dishes.length > 0 && el("div", { class: "pair" }, plate(result), certainty(result)),
    timings(stages, elapsed),
    facts(result, copy),
  ].filter(Boolean);
}

function headline(result) {
  const notes = [
    result.duplicate_of && el("p", { class: "note" },
      "You sent this photo before: its stored score was used again. First result ",
      el("code", { title: result.duplicate_of }, shorten(result.duplicate_of)), "."),
    result.review && el("p", { class: "note" },
      "Reviewed by a nutritionist", result.review.comment ? `: ${result.review.comment}` : "."),
  ];
  if (result.score === null) {
    const { title, meaning } = UNSCORED[result.status] ?? UNSCORED.needs_review;
    return card(null, "score unscored",
      el("h2", {}, title), el("p", { class: "lead" }, meaning), ...notes);
  }
  const { word, meaning } = SCORES[result.score];
  return card(null, "score",
    el("div", { class: "score-top" },
      el("p", { class: "score-number" }, String(result.score), el("span", {}, " of 5")),
      el("div", {}, el("h2", {}, word), el("p", { class: "muted" }, meaning))),
    steps(result.score), ...notes);
}

function steps(score) {
  return el("ol", { class: "steps", "aria-label": "Scale from 1 to 5" }, ...SCORES.slice(1).map(({ word }, index) => {
    const step = index + 1;
    const state = step === score ? "here" : step < score ? "passed" : "ahead";
    return el("li", { class: state, "aria-current": step === score && "true" },
      el("span", { class: "step-number" }, String(step)), el("span", { class: "step-word" }, word));
  }));
}

function plate(result) {
  return card("On the plate", "plate", el("ul", { class: "rows" }, ...result.dishes.map(({ name, probability }) =>
    el("li", {}, el("span", {}, name), el("span", { class: "figure" }, percent(probability)), bar(probability)))));
}

function certainty(result) {
  if (!result.score_probabilities) return null;
  const highest = Math.max(...result.score_probabilities);
  const columns = result.score_probabilities.map((probability, index) =>
    el("li", { class: index + 1 === result.score && "here" },
      el("span", { class: "figure" }, percent(probability)),
      bar(probability / highest, "column"),
      el("span", { class: "axis" }, el("span", { class: "unseen" }, "score "), String(index + 1))));
  return card("How sure", "certainty",
    el("ol", { class: "chart", "aria-label": "Probability of each score" }, ...columns),
    result.score_mean !== null && el("p", { class: "muted small" }, `Mean ${result.score_mean.toFixed(1)}`));
}

function timings(stages, elapsed) {
  const own = stages.filter(([name]) => name in STAGES);
  const rest = elapsed - own.reduce((sum, [, ms]) => sum + ms, 0);
  const parts = own.map(([name, ms]) => [STAGES[name], ms, name]);
  if (rest > 0) parts.push(["Network and the rest", rest, "rest"]);
  const segments = parts.map(([, ms, name]) => {
    const segment = el("span", { "data-stage": name });
    segment.style.flexGrow = String(ms);
    return segment;
  });
  return card("Time", "time",
    el("p", { class: "total" }, el("strong", {}, milliseconds(elapsed)), " from sending to answer"),
    el("div", { class: "stack", "aria-hidden": "true" }, ...segments),
    el("dl", { class: "stages" }, ...parts.map(([label, ms, name]) =>
      el("div", { "data-stage": name }, el("dt", {}, label), el("dd", {}, milliseconds(ms))))),
    own.length > 0 && el("p", { class: "muted small" }, "The photo is saved while it is being scored, so stages overlap."));
}

function facts(result, copy) {
  const { image, model } = result;
  const hash = el("code", { title: image.sha256 }, shorten(image.sha256));
  const rows = [
    ["Image hash", hash, el("button", { type: "button", class: "chip-button", "aria-label": "Copy the full SHA-256 hash",
      onclick: (event) => copy(image.sha256, hash, event.currentTarget) }, "Copy")],
    ["Photo", `${image.width} × ${image.height}, ${size(image.bytes)}, ${image.media_type.replace("image/", "").toUpperCase()}`],
    ["Model", `${model.name} ${model.version}`],
    ["Food in the photo", percent(result.food_probability)],
    ["Scored", new Date(result.created_at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })],
    ["Result id", el("code", {}, result.id)],
  ];
  return card("Details", "facts", el("dl", {}, ...rows.map(([term, ...value]) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, ...value)))));
}

function shorten(text) {
  return text.length > 14 ? `${text.slice(0, 12)}…` : text;
}

/** One photo in the list. update() changes text and attributes only, so keyboard focus survives it. */
export function tile(item, { show, remove }) {
  const image = el("img", { alt: "", loading: "lazy", onerror: () => image.classList.add("broken") });
  const badge = el("span", { class: "badge" });
  const caption = el("span", { class: "caption" });
  const open = el("button", { type: "button", class: "tile", onclick: show }, el("span", { class: "thumb" }, image, badge), caption);
  const bin = el("button", { type: "button", class: "bin", onclick: remove }, "×");
  const node = el("li", {}, open, bin);
  const update = (current) => {
    const source = item.thumb ?? item.url ?? "";
    if (source && image.getAttribute("src") !== source) image.src = source;
    const { mark, text, name } = summary(item);
    badge.textContent = mark;
    badge.classList.toggle("scored", item.answer?.result.score > 0);
    caption.textContent = text;
    open.setAttribute("aria-label", `Show ${name}`);
    bin.setAttribute("aria-label", `Delete ${name}`);
    bin.hidden = item.state === "sending"; // its id, and so what to delete, is known in a moment
    if (current) open.setAttribute("aria-current", "true");
    else open.removeAttribute("aria-current");
  };
  return { node, open, update };
}

function summary(item) {
  const plain = (mark, text) => ({ mark, text, name: `${item.name}, ${text.toLowerCase()}` });
  if (item.state === "queued") return plain("…", "Waiting");
  if (item.state === "sending") return plain("…", "Scoring…");
  if (item.state === "key") return plain("?", "Needs a key");
  if (item.state === "failed") return plain("!", "Not scored");
  const { result } = item.answer;
  if (result.score === null) return plain("–", (UNSCORED[result.status] ?? UNSCORED.needs_review).short);
  const { word } = SCORES[result.score];
  const dish = dishOf(result) || item.name;
  return { mark: String(result.score), text: dish, name: `${dish}, score ${result.score} of 5, ${word.toLowerCase()}` };
}

/** The profile's check boxes, each a chip with a tick. */
export function chips(group) {
  return Object.entries(PROFILE[group]).map(([value, label]) =>
    el("label", { class: "chip" }, el("input", { type: "checkbox", name: group, value }), el("span", {}, label)));
}
