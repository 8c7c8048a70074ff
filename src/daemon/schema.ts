/** What the configuration is described with. Of zod no more than this is in the program: a daemon's start would take longer by what it never uses. */
export { array, boolean, enum, int, literal, NEVER, strictObject, string, union } from 'zod';
