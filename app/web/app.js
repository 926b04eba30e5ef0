// The page: takes photos, keeps the queue, and decides what is on show.

import { ApiError, deleteScore, scorePhoto } from "./api.js";
import * as storage from "./storage.js";
import { chips, failure, outcome, tile, waiting, welcome } from "./view.js";
import { IN_DOUBT, PROFILE, explain, spoken } from "./words.js";

const IN_FLIGHT_MAX = 3;
const THUMB_PX = 320;

const $ = (id) => document.getElementById(id);

// An item is one photo: {id, name, state, photo?, url?, thumb?, profile?, answer?, error?, inDoubt?, tile}.
// state: queued → sending → done | failed | key. Its id is also its Idempotency-Key, through every retry.
// inDoubt: a try of it broke off, so that the service may have it although it gave no result.
let items = []; // newest first
let current = null;
let apiKey = null;
let profile = null;

// --- photos in -------------------------------------------------------------------------------------

function add(files) {
  const added = [...files].map((photo) => newItem({
    id: newId(), name: photo.name || "Pasted photo", state: "queued", photo, profile, url: URL.createObjectURL(photo),
  }));
  if (!added.length) return;
  items = [...added].reverse().concat(items);
  current = added[0];
  render();
  bringIntoView();
  say(added.length > 1 ? `Scoring ${added.length} photos…` : "Scoring…");
  pump();
}

function newItem(fields) {
  const item = { ...fields };
  item.tile = tile(item, { show: () => show(item), remove: () => askDelete(item) });
  return item;
}

/** randomUUID exists on https and localhost only; a phone on the local network has neither. */
function newId() {
  return crypto.randomUUID?.()
    ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- the queue -------------------------------------------------------------------------------------

function pump() {
  if (!apiKey) {
    const blocked = items.filter((item) => item.state === "queued");
    for (const item of blocked) Object.assign(item, { state: "key", error: new ApiError({ code: "key_needed" }) });
    if (blocked.length) askKey();
    render();
    return;
  }
  const free = IN_FLIGHT_MAX - items.filter((item) => item.state === "sending").length;
  const oldestFirst = items.filter((item) => item.state === "queued").reverse();
  for (const item of oldestFirst.slice(0, Math.max(0, free))) score(item);
}

async function score(item) {
  item.state = "sending";
  render();
  const usedKey = apiKey;
  const [scored, thumb] = await Promise.allSettled([
    scorePhoto({ photo: item.photo, profile: item.profile, key: usedKey, idempotencyKey: item.id }),
    item.thumb ?? thumbnail(item.photo),
  ]);
  item.thumb = thumb.value ?? null; // none for a format this browser cannot decode
  if (scored.status === "fulfilled") {
    Object.assign(item, { state: "done", answer: scored.value, error: null, photo: null });
    say(spoken(item.answer.result));
  } else {
    fail(item, scored.reason, usedKey);
  }
  if (items.includes(item)) {
    remember();
    render();
  }
  pump();
}

function fail(item, error, usedKey) {
  if (!(error instanceof ApiError)) throw error;
  item.error = error;
  item.state = error.status === 401 ? "key" : "failed";
  item.inDoubt ||= error.status === 0 || error.status >= 500;
  say(explain(error).join(". "));
  if (error.status !== 401) return;
  if (apiKey === usedKey) setKey(null);
  if (apiKey) item.state = "queued"; // a new key came while this photo was under way
  else askKey("That key was not accepted. Check it and enter it again.");
}

function retry(item) {
  item.state = "queued";
  say("Scoring…");
  render();
  pump();
}

async function thumbnail(photo) {
  const bitmap = await createImageBitmap(photo, { resizeWidth: THUMB_PX, resizeQuality: "medium" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.75);
}

// --- what is on show -------------------------------------------------------------------------------

function show(item) {
  current = item;
  render();
  $("result").focus({ preventScroll: true });
  bringIntoView();
}

/** Where the result comes below the photo, the photo goes to the top, so that both are seen. */
function bringIntoView() {
  const sideBySide = matchMedia("(min-width: 56rem)").matches;
  $("drop").scrollIntoView({ block: sideBySide ? "nearest" : "start" });
}

let shown = []; // what the result was last made from; it is not rebuilt, nor its focus lost, for nothing

function render() {
  const older = items.slice(items.indexOf(current) + 1);
  const ahead = older.filter(({ state }) => state === "sending" || state === "queued").length;
  const queued = current?.state === "queued" ? ahead : 0;
  const now = [current, current?.state, current?.error, queued];
  if (!now.every((part, index) => part === shown[index]) || !shown.length) {
    shown = now;
    const hadFocus = $("result").contains(document.activeElement);
    $("result").replaceChildren(...resultNodes(queued));
    if (hadFocus) $("result").focus({ preventScroll: true });
    renderPhoto();
  }
  $("history").hidden = !items.length;
  const nodes = items.map((item) => {
    item.tile.update(item === current);
    return item.tile.node;
  });
  const list = $("history-list");
  if (nodes.length !== list.children.length || nodes.some((node, index) => node !== list.children[index])) {
    list.replaceChildren(...nodes);
  }
}

function resultNodes(ahead) {
  if (!current) return welcome();
  if (current.state === "done") return outcome(current.answer, { copy });
  if (current.error && (current.state === "failed" || current.state === "key")) {
    const item = current;
    return failure(item, { retry: () => retry(item), askKey: () => askKey() });
  }
  return waiting(current, ahead);
}

function renderPhoto() {
  const source = current?.broken ? null : current?.url ?? current?.thumb ?? null;
  $("invite").hidden = Boolean(current);
  $("photo-missing").hidden = !current || Boolean(source);
  $("photo").hidden = !source;
  if (!source) {
    $("photo").removeAttribute("src");
  } else if ($("photo").getAttribute("src") !== source) {
    $("photo").src = source;
    $("photo").alt = `Your photo: ${current.name}`;
  }
}

function say(text) {
  $("status").textContent = text;
}

async function copy(text, code, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("Hash copied.");
  } catch {
    // No clipboard without https: put the whole hash there, selected, one key press from copied.
    code.textContent = text;
    getSelection().selectAllChildren(code);
    say("The full hash is selected. Press Control or Command and C to copy it.");
  }
}

// --- history ---------------------------------------------------------------------------------------

function remember() {
  storage.saveHistory(items.filter((item) => item.state === "done")
    .map(({ id, name, thumb, answer }) => ({ id, name, thumb, answer })));
}

function drop(gone) {
  const at = items.indexOf(gone[0]);
  for (const item of gone) if (item.url) URL.revokeObjectURL(item.url);
  items = items.filter((item) => !gone.includes(item));
  if (gone.includes(current)) current = items[Math.min(at, items.length - 1)] ?? null;
  remember();
  render();
  (items.length ? $("history-title") : $("choose")).focus();
}

function clearList() {
  drop(items.filter((item) => item.state !== "sending"));
  say("List cleared.");
}

let doomed = null;

function askDelete(item) {
  if (item.state !== "done" && !item.inDoubt) {
    drop([item]); // the service never had it
    say("Removed.");
    return;
  }
  doomed = item;
  const [title, meaning] = item.state === "done"
    ? ["Delete this photo?", "The photo and its result are removed from the service. This cannot be undone."]
    : [IN_DOUBT.title, IN_DOUBT.meaning];
  $("delete-title").textContent = title;
  $("delete-what").textContent = meaning;
  $("delete-dialog").showModal();
}

async function confirmDelete() {
  const item = doomed;
  if (item.state !== "done") {
    drop([item]);
    say(IN_DOUBT.done);
    return;
  }
  try {
    await deleteScore(item.answer.result.id, apiKey);
    drop([item]);
    say("Photo deleted.");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const [title, next] = explain(error);
    $("delete-title").textContent = title;
    $("delete-what").textContent = `The photo was not deleted. ${next}`;
    if (error.status === 401) askKey("That key was not accepted. Check it and enter it again.");
    else $("delete-dialog").showModal();
  }
}

// --- key and profile -------------------------------------------------------------------------------

function setKey(key) {
  apiKey = key;
  storage.saveKey(key);
  if (!key) return;
  for (const item of items) if (item.state === "key") item.state = "queued";
  render();
  pump();
}

function askKey(why = "Photos are scored for whoever holds a key. The service printed one at its first start.") {
  if ($("key-dialog").open) return; // keep what is being typed
  $("key-why").textContent = why;
  $("key-forget").hidden = !apiKey;
  $("key-input").value = "";
  $("key-dialog").showModal();
}

function forgetKey() {
  setKey(null);
  drop(items);
  $("key-dialog").close();
}

function setProfile(next) {
  profile = next;
  storage.saveProfile(next);
  const count = next ? Object.values(next).flat().length : 0;
  $("profile-count").hidden = count === 0;
  $("profile-count").textContent = String(count);
}

function fillProfile(from) {
  for (const box of $("profile-dialog").querySelectorAll("input[type=checkbox]")) {
    box.checked = from?.[box.name]?.includes(box.value) ?? false;
  }
  $("profile-user").value = from?.user ?? "";
}

/** Only what was set: no profile at all sends the photo as it is. */
function readProfile() {
  const next = {};
  if ($("profile-user").value) next.user = $("profile-user").value;
  for (const group of Object.keys(PROFILE)) {
    const boxes = $("profile-dialog").querySelectorAll(`input[name=${group}]:checked`);
    if (boxes.length) next[group] = Array.from(boxes, (box) => box.value);
  }
  return Object.keys(next).length ? next : null;
}

// --- wiring ----------------------------------------------------------------------------------------

/** Each dialog is a form: submit acts, Cancel and Escape do not. */
function onSubmit(dialogId, act) {
  const dialog = $(dialogId);
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    act();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
}

function wirePhotos() {
  for (const way of ["choose", "take"]) {
    $(way).addEventListener("click", () => $(`${way}-input`).click());
    $(`${way}-input`).addEventListener("change", (event) => {
      add(event.target.files);
      event.target.value = ""; // the same photo may be chosen again
    });
  }
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  const over = (yes) => document.body.classList.toggle("dragging", yes);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  document.addEventListener("drop", (event) => {
    over(false);
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
  $("photo").addEventListener("error", () => {
    current.broken = true; // not an image, or of a kind this browser does not know
    renderPhoto();
  });
}

function wireDialogs() {
  for (const group of Object.keys(PROFILE)) $(`profile-${group}`).querySelector(".chips").append(...chips(group));
  $("profile-open").addEventListener("click", () => {
    fillProfile(profile);
    $("profile-dialog").showModal();
  });
  $("profile-reset").addEventListener("click", () => fillProfile(null));
  onSubmit("profile-dialog", () => setProfile(readProfile()));
  $("key-open").addEventListener("click", () => askKey());
  $("key-forget").addEventListener("click", forgetKey);
  onSubmit("key-dialog", () => setKey($("key-input").value.trim() || null));
  onSubmit("delete-dialog", confirmDelete);
  $("history-clear").addEventListener("click", clearList);
}

function start() {
  wirePhotos();
  wireDialogs();
  setProfile(storage.loadProfile());
  items = storage.loadHistory().map((entry) => newItem({ ...entry, state: "done" }));
  current = items[0] ?? null;
  render();
  setKey(storage.takeKeyFromUrl() ?? storage.loadKey());
  if (!apiKey) askKey();
  addEventListener("hashchange", () => {
    const key = storage.takeKeyFromUrl();
    if (!key) return;
    $("key-dialog").close();
    setKey(key);
  });
}

start();
