"""The results of an audit: the content of results.json, and what is derived from it.

common                what all results have
models, photos        the results of an audit of models, and of an audit of photos
one_model, search     those of attacks on one model, and of an attacker's search
file, schema          writes and reads results.json, and its JSON schema
rows                  figures of an attack from its rows
budgets               what each attack reaches with the same number of pictures to train on
store                 finished cells on disk
picture_names         what the pictures are called
"""
