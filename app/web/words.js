// Everything the page says that depends on data: scores, states, errors, stages and profile choices.

/** Index = score. The word is what people read; the meaning says how to act on it. */
export const SCORES = [
  null,
  { word: "Rarely", meaning: "A treat. Enjoy a little, once in a while." },
  { word: "Now and then", meaning: "Fine now and then, with something fresh beside it." },
  { word: "Fair", meaning: "A fair meal. One small change makes it better." },
  { word: "Good", meaning: "A good choice for most days." },
  { word: "Great choice", meaning: "As good as it gets. Have it often." },
];

/** Results without a score. */
export const UNSCORED = {
  not_food: {
    short: "No food",
    title: "No food found",
    meaning: "This photo does not seem to show a meal. Try one taken from above, in good light.",
  },
  needs_review: {
    short: "In review",
    title: "Waiting for a nutritionist",
    meaning: "The model is not sure about this one, so it gives no score. A nutritionist will look at it.",
  },
};

/** Stages of the Server-Timing header, in the order a photo meets them. */
export const STAGES = {
  auth: "Check key",
  dedupe: "Seen before?",
  store: "Save photo",
  queue: "Wait in line",
  decode: "Read photo",
  score: "Score",
  tip: "Pick a tip",
};

/** Values are the API's; see Profile in app/schemas.py. */
export const PROFILE = {
  goals: {
    "less-sugar": "Less sugar",
    "less-salt": "Less salt",
    "more-fibre": "More fibre",
    weight: "Weight",
    "blood-glucose": "Blood glucose",
    "blood-pressure": "Blood pressure",
  },
  diet: {
    vegetarian: "Vegetarian",
    vegan: "Vegan",
    pescatarian: "Pescatarian",
    halal: "Halal",
    kosher: "Kosher",
    "gluten-free": "Gluten-free",
    "lactose-free": "Lactose-free",
  },
  avoid: {
    alcohol: "Alcohol",
    beef: "Beef",
    celery: "Celery",
    crustaceans: "Crustaceans",
    dairy: "Dairy",
    egg: "Egg",
    fish: "Fish",
    gluten: "Gluten",
    lupin: "Lupin",
    meat: "Meat",
    molluscs: "Molluscs",
    mustard: "Mustard",
    peanut: "Peanut",
    pork: "Pork",
    sesame: "Sesame",
    soy: "Soy",
    sulphites: "Sulphites",
    "tree-nut": "Tree nuts",
  },
};

const BUSY = ["The service is busy", "Your photo is fine. Wait a moment, then try again."];
const DOWN = ["The service cannot answer just now", "Your photo is fine. Wait a moment, then try again."];
const NEW_PHOTO = "Try another photo, or take this one again.";
const OPERATOR = "Tell whoever runs this service, and give them the request id below.";

/** Problem code → what happened, and what to do next. The first two exist only on this page. */
export const ERRORS = {
  network: ["The connection broke", "Check that you are online, then try again. Nothing is scored twice."],
  key_needed: ["An API key is needed", "Enter your key and the photo is scored at once."],
  unauthenticated: ["The API key was not accepted", "Check the key and enter it again."],
  invalid_request: ["The service did not understand the request", "Reload the page and try again."],
  not_found: ["It is no longer there", "It was deleted before, or it belongs to another key."],
  method_not_allowed: ["This service does not offer that", OPERATOR],
  body_timeout: ["The photo took too long to arrive", "Find a better connection, then try again."],
  idempotency_key_reused: ["This photo was mixed up with another one", "Add the photo again."],
  idempotency_in_flight: ["This photo is still being scored", "Wait a moment, then try again."],
  already_decided: ["This photo cannot be reviewed", "There is no food in it."],
  image_conflict: ["This photo could not be stored", OPERATOR],
  body_too_large: ["The photo is too large", "Choose a smaller one, or lower the resolution of your camera."],
  unsupported_media_type: ["This is not a photo we can read", "Choose a JPEG, HEIC, PNG or WebP photo."],
  invalid_field: ["One of your choices was not accepted", "Open “For you”, check the choices, and add the photo again."],
  image_unreadable: ["The photo cannot be read", "The file seems damaged. " + NEW_PHOTO],
  image_empty: ["The file is empty", NEW_PHOTO],
  image_truncated: ["The photo is cut short", "Part of the file is missing. " + NEW_PHOTO],
  image_animated: ["Animations cannot be scored", "Choose a still photo."],
  image_too_many_pixels: ["The photo has too many pixels", "Choose a smaller one, or lower the resolution of your camera."],
  image_too_few_pixels: ["The photo is too small", "Choose a larger photo, so that the meal can be seen."],
  overloaded: BUSY,
  rate_limited: ["This key has made all the requests it may for now", "Your photo is fine. Try again later."],
  needs_object_storage: ["This service does not offer that", OPERATOR],
  results_unavailable: DOWN,
  images_unavailable: DOWN,
  credentials_unavailable: DOWN,
  queue_unavailable: DOWN,
  scorer_unavailable: DOWN,
  deadline_exceeded: ["It took too long", "The service gave up rather than keep you waiting. Try again."],
  internal: ["Something went wrong on our side", "Try again. If it stays, give the request id below to whoever runs this service."],
};

/** Before and after a photo is deleted whose last answer got lost: nobody here knows what the service has. */
export const IN_DOUBT = {
  title: "Delete this photo from the list?",
  meaning: "It goes off this list only. The service may still have the photo.",
  done: "Off this list. The service may still have the photo.",
};

/** [what happened, what to do next] for an error, also one with a code this page does not know. */
export function explain(error) {
  return ERRORS[error.code] ?? [error.title || ERRORS.internal[0], error.detail || ERRORS.internal[1]];
}

/** The name of the likeliest dish, or "" where nothing was recognised. */
export function dishOf(result) {
  return result.dishes[0]?.name ?? "";
}

/** One sentence for a screen reader: "Score 4 of 5, good: apple. Tip: …" */
export function spoken(result) {
  const tip = result.tip ? ` Tip: ${result.tip.text}` : "";
  if (result.score === null) {
    const { title, meaning } = UNSCORED[result.status] ?? UNSCORED.needs_review;
    return `${title}. ${meaning}${tip}`;
  }
  const dish = dishOf(result) ? `: ${dishOf(result)}` : "";
  return `Score ${result.score} of 5, ${SCORES[result.score].word.toLowerCase()}${dish}.${tip}`;
}

export function percent(probability) {
  const whole = Math.round(probability * 100);
  if (whole === 0 && probability > 0) return "<1%";
  return `${whole}%`;
}

export function milliseconds(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
