"""FoodDX on Ray Serve: a photo of a meal in; a score from 1 to 5, the dishes and a tip out."""
