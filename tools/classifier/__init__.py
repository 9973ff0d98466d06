"""The reward-based classifier: does a failing reply lack content, form, or both?"""
