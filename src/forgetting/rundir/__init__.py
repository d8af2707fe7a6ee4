"""A run directory: where each artifact is, who writes it, and who reads it.

Every artifact has one typed reader and one writer in this package. A reader checks that the
artifact belongs to the tokens of D_train and raises `InputError` with one message if it does not.
`layout` spells every path; nothing outside this package does.
"""
