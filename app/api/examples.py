"""The examples in the OpenAPI page: one real answer, and a profile."""

from __future__ import annotations

from typing import Any

PROFILE = '{"user": "ana", "goals": ["less-salt"], "diet": ["vegetarian"], "avoid": ["peanut"]}'

RESULT: dict[str, Any] = {
    "id": "0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11",
    "status": "scored",
    "score": 2,
    "score_mean": 2.21,
    "score_probabilities": [0.21, 0.52, 0.15, 0.09, 0.03],
    "dishes": [{"name": "pizza", "probability": 0.83}],
    "food_probability": 0.99,
    "tip": {
        "id": "half-the-plate-vegetables",
        "text": "Fill half of your plate with vegetables or a salad next time.",
        "source": "Harvard Healthy Eating Plate, 2011",
    },
    "image": {
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "pdq": "d8f8f0cec0f4a84f0637022a278f67f0b36e2ed596621e1d33e6b39c4e9c9b22",
        "width": 4032,
        "height": 3024,
        "bytes": 1415302,
        "media_type": "image/jpeg",
        "key": "default/9f/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "duplicate_of": None,
    "model": {"name": "imagenet-lite0", "version": "1"},
    "user": "ana",
    "review": None,
    "created_at": "2026-11-21T12:00:00.000000Z",
}
