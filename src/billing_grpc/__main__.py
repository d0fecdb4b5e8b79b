"""`python -m billing_grpc` is `billing-grpc`."""

from billing_grpc.cli.main import main

if __name__ == "__main__":
    main()
