"""Text: corpora in the cache, tokenizers, tokens, and streams of tokens.

corpus = corpora.load_corpus("books", cache)
tok = tokenizers.make_tokenizer("bytes", corpus, cache)
stream = streams.Stream(tokens.tokenize(corpus, tok, "train", cache), (8, 2, 128))
"""
