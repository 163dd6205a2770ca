"""A package, so that its page and server can be made once for the folder and end with it (scope "package")."""
