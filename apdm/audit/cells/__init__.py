"""The cells of an audit. A cell is one attack on one model with the photos of one person and one seed.

matrix                the list of all cells, which several processes can share
cell, runner          one cell; how it is run: attacked, and judged at every measured step
judging, attention    how pictures are judged; maps of where an attacked model attends to the word for the subject
class_pictures        what the models draw for the class prompt, without an attack
guidance              what the models draw of the people before any attack
"""
