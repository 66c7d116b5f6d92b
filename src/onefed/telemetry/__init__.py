"""What happens, said once and shown in many ways.

``events``     the vocabulary: one frozen dataclass per event, and its way to data and back
``sentences``  one plain line of text per event
``lines``      the JSON line, its parser, the text line, a formatter for ``logging``
``log``        the event log: a file that several processes append to and others follow
``status``     a fold of records into what a person wants to see
``group``      the same of a group without a coordinator, from the logs of its members
``metrics``    a fold of records into what a monitoring system wants to see
``exposition`` these numbers as Prometheus reads them
``scrape``     a web server for that one page
"""
