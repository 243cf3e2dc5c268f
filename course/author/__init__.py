"""What authors of lessons use: building, exercises made from solutions, cards, documents."""
