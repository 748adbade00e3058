"""What a user hands in, made ready for the model: pictures to pixels, texts to tokens that know where they came from."""
