"""The methods that come with alignkit, each one file that reads like its paper."""
