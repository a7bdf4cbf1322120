"""Additions to the scores: baselines, style distances, class features. Scores are kept if one of them fails."""
