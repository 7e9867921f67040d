"""What a driver sees: data, figures and answers of both devices over each store and engine."""
