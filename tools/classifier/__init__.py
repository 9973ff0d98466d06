"""The reward-based classifier: does a failing reply need other content, another form, or both?"""
