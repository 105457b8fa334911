-- Run once by the image's own entry script, as the superuser, when the volume is empty: Penstock gets a role that owns its
-- database and may do nothing elsewhere.
\set ON_ERROR_STOP on
\getenv password PENSTOCK_DATABASE_PASSWORD
create role penstock login password :'password';
create database penstock owner penstock;
revoke connect on database penstock from public;
