"""What a sweep begins from: prompts, a model's files, its tokens and its embedding rows."""
