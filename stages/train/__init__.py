"""Stage two: the policy is trained from the reward cache; no other model is loaded."""
