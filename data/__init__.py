"""What flows between the stages: preference pairs, token ids, packed batches, the reward cache. No models here."""
