import { LunetteError } from '../../formats/core/errors.ts';

/** What the server tells about itself while it runs. Fields are for machines, the text is for people and complete without them. */
export interface ServerLog {
  debug(fields: LogFields, text: string): void;
  info(fields: LogFields, text: string): void;
  warn(fields: LogFields, text: string): void;
  error(fields: LogFields, text: string): void;
}

export type LogFields = Readonly<Record<string, unknown>>;

/** For those who do not want to know. */
export const SILENT: ServerLog = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};

/** An error for a log or a bus: where, what, and what to do, in one line. */
export function describe(error: unknown): string {
  if (!(error instanceof LunetteError)) return error instanceof Error ? error.message : String(error);
  const { path, message, help } = error;
  const text = path === undefined || message.includes(path) ? message : `${path}: ${message}`;
  return help === undefined ? text : `${text}. ${help}`;
}
