import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fromSystemError } from '../../formats/core/errors.ts';

export interface Login {
  readonly user: string;
  readonly password: string;
}

/**
 * Finds who we are to a server, in the file that other programs have for that: `$NETRC`, else `~/.netrc`. Entries for all hosts (`default`) are not
 * taken: an image may name any host.
 *
 * @throws {StorageError} ACCESS and others when `$NETRC` names a file that cannot be read
 */
export async function loginFor(
  host: string,
  env: Readonly<Record<string, string | undefined>> = process.env,
): Promise<Login | undefined> {
  const named = env.NETRC;
  const path = named === undefined || named === '' ? join(homedir(), '.netrc') : named;
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (path !== named) return undefined;
    throw fromSystemError(error, 'cannot read the logins that $NETRC names', { path });
  }
  return parseNetrc(text, host);
}

/** The login for a host in the text of a netrc file. What follows a macro is not read. */
export function parseNetrc(text: string, host: string): Login | undefined {
  const words = text
    .split('\n')
    .filter((line) => !line.trimStart().startsWith('#'))
    .join('\n')
    .split(/\s+/);
  let here = false;
  let user: string | undefined;
  let password: string | undefined;
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word === 'machine' || word === 'default' || word === 'macdef') {
      if (here) break;
      if (word === 'macdef') return undefined;
      here = word === 'machine' && words[++i]?.toLowerCase() === host.toLowerCase();
    } else if (word === 'login' || word === 'password' || word === 'account') {
      const value = words[++i];
      if (here && word === 'login') user = value;
      if (here && word === 'password') password = value;
    }
  }
  return user === undefined ? undefined : { user, password: password ?? '' };
}
