"""Addresses of Services, announced where and while somebody answers behind them."""
