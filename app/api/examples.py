"""The examples in the OpenAPI page: one real answer, and what goes in and comes out around it."""

from __future__ import annotations

from typing import Any

from app.api.labels import to_csv
from app.schemas import Labels

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
    "model": {"name": "meals-lite2", "version": "2"},
    "user": "ana",
    "review": None,
    "created_at": "2026-11-21T12:00:00.000000Z",
}

DIARY: dict[str, Any] = {
    "user": "ana",
    "items": [RESULT],
    "days": [{"date": "2026-11-21", "photos": 1, "scored": 1, "score_mean": 2.0}],
    "next_cursor": None,
}

UNSURE: dict[str, Any] = RESULT | {
    "status": "needs_review",
    "score": None,
    "score_mean": 3.1,
    "score_probabilities": [0.28, 0.14, 0.09, 0.18, 0.31],
    "dishes": [{"name": "pizza", "probability": 0.34}, {"name": "salad", "probability": 0.31}],
}

REVIEW_QUEUE: dict[str, Any] = {"items": [UNSURE], "next_cursor": None}

REVIEW_IN: dict[str, Any] = {
    "score": 4,
    "dish": "caesar salad",
    "comment": "A salad with croutons.",
    "reviewer": "dr-lee",
}

LABELS: dict[str, Any] = {
    "items": [
        {
            "image": RESULT["image"]["key"],
            "score": 4,
            "class": "caesar salad",
            "id": RESULT["id"],
            "sha256": RESULT["image"]["sha256"],
            "model": "meals-lite2@2",
            "model_score": 3.1,
            "reviewer": "dr-lee",
            "reviewed_at": "2026-11-21T12:30:00.000000Z",
            "comment": "A salad with croutons.",
        }
    ],
    "next_cursor": None,
}

LABELS_CSV = to_csv(Labels.model_validate(LABELS))

SCORE_BY_KEY: dict[str, Any] = {
    "key": RESULT["image"]["key"],
    "profile": {"user": "ana", "goals": ["less-salt"]},
}

UPLOAD_IN: dict[str, Any] = {"media_type": "image/jpeg", "bytes": 1415302, "profile": {"user": "ana"}}

UPLOAD: dict[str, Any] = {
    "id": RESULT["id"],
    "key": f"uploads/default/{RESULT['id']}",
    "url": "https://fooddx-photos-123456789012-eu-west-1.s3.eu-west-1.amazonaws.com",
    "fields": {
        "key": f"uploads/default/{RESULT['id']}",
        "Content-Type": "image/jpeg",
        "x-amz-server-side-encryption": "AES256",
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20261121/eu-west-1/s3/aws4_request",
        "x-amz-date": "20261121T120000Z",
        "policy": "eyJleHBpcmF0aW9uIjogIjIwMjYtMTEtMjFUMTI6MDU6MDBaIiwg…",
        "x-amz-signature": "f1a4…",
    },
    "expires_at": "2026-11-21T12:05:00Z",
}

PENDING: dict[str, Any] = {"id": RESULT["id"], "status": "pending"}

MODELS: dict[str, Any] = {
    "serving": {"name": "meals-lite2", "version": "2"},
    "models": [
        {
            "name": "meals-lite2",
            "version": "2",
            "backbone": "tf_efficientnet_lite2",
            "licence": "research use",
            "input_size": 224,
            "labels": 142,
            "foods": [
                {
                    "name": "pizza",
                    "classes": ["pizza"],
                    "score": 2,
                    "grade": "D",
                    "points": 16,
                    "category": "general",
                    "components": {
                        "energy": 3,
                        "sugars": 0,
                        "saturates": 5,
                        "salt": 8,
                        "protein": 0,
                        "fibre": 0,
                        "fruit_veg_legume": 0,
                    },
                    "per_100": {
                        "energy_kj": 1133.9,
                        "sugars_g": 3.37,
                        "saturated_fat_g": 5.04,
                        "fat_g": 10.89,
                        "salt_g": 1.7125,
                        "fibre_g": 1.8,
                        "protein_g": 11.93,
                        "fruit_veg_legume_pct": 15.0,
                    },
                    "sources": ['100% FDC 172040: PIZZA HUT 12" Cheese Pizza, Hand-Tossed Crust (SR Legacy)'],
                }
            ],
            "thresholds": {"food": 0.15, "review": 1.0, "dish": 0.05, "dishes": 5},
        }
    ],
}

BY_SCHEMA = {
    "Result": RESULT,
    "Diary": DIARY,
    "ReviewQueue": REVIEW_QUEUE,
    "ReviewIn": REVIEW_IN,
    "Labels": LABELS,
    "ScoreByKey": SCORE_BY_KEY,
    "UploadIn": UPLOAD_IN,
    "Upload": UPLOAD,
    "Pending": PENDING,
    "Models": MODELS,
}
