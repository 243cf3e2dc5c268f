"""What keeps a run alive: loss scaling, accumulation, clipping, schedules, the noise of gradients, and a guard."""
