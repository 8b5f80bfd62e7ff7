"""How a text is read: which label, answer, fact or program it gives, and how it is worded (`data.checks`)."""
