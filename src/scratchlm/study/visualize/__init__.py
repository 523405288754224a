"""A trained model and a text come in, what happens inside comes out, as one page and as pictures.

    passes        one text through the model, watched by hooks: residual stream, attention, predictions
    lens          what each layer would say if it were the last
    split         validation rows through the model: loss by place, sizes of activations, gradients
    embeddings    the token table on a plane, and the nearest neighbours in every checkpoint
    figures       drawings, in the page's colours or standing alone
    page          all of it in one file

Nothing here changes a model: hooks look and are taken away again, gradients are returned and never stored.
"""
