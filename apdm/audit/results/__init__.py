"""The results of an audit: the content of results.json, and what is derived from it.

common, models, photos, search   what all results have; those of models, of photos, and of a search
file, schema          writes and reads results.json, and its JSON schema
rows                  figures of an attack from its rows
budgets               what each attack reaches with the same number of pictures to train on
store                 finished cells on disk
picture_names         what the pictures are called
"""
