"""Text: corpora in the cache, tokenizers, tokens, and streams of them.

corpus = corpora.corpus("books", cache)
tok = tokenizers.tokenizer("bytes", corpus, cache)
stream = streams.Stream(tokens.tokenize(corpus, tok, "train", cache), batch=8, segments=2, time=128)
"""
