"""What several jobs use.

first_checks                 mistakes that are found before torch is imported
prepare                      threads, warnings about prompts, datasets, and the output folder
base_model, class_pictures   the models and the class pictures of a job
face_networks                which networks look at faces
stages                       the names of the stages of a job, and the report that grows with them
tracked                      what a tracker gets
results, summary             what a job returns; what it tells at its end
process_state                what the Python API restores after a job
"""
