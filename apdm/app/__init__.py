"""The page that `apdm app` shows in the browser of this machine: it protects photos, and shows reports.

The work is done by `apdm.jobs.perturb`, as for `apdm perturb`. Here are the page, the private folders of its users'
photos, and the queue of what they ask for.

    choices      what may be chosen in the page, and what it means
    sessions     the photos of one page, in a private folder, until the page is closed
    worker       one piece of work at a time; the others wait
    protecting   looking at photos and protecting them, by the functions of the jobs
    reports      the pages of audits
    parts        pieces of HTML
    texts        what protection means, and what it does not mean
    pictures     the secret addresses of pictures and reports
    photos_tab   the tab that protects photos, made with Gradio
    page         the page: this tab, and the one that shows reports
    guard        which requests are answered at all
    server       the server, from its start to its end
"""
