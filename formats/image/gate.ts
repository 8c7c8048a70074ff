import { realpathSync } from 'node:fs';
import path from 'node:path';
import { ImageError } from '../core/errors.ts';

/** Why a file is being opened: for messages. */
export type ReferenceKind = 'backing file' | 'data file' | 'extent' | 'parent';

/**
 * Judges every file that an image names by itself. An uploaded image must not make us read a host file of its author's choice
 * (CVE-2022-47951, CVE-2024-32498): what is outside the allowed directories is refused before anything is opened.
 */
export interface OpenGate {
  /**
   * @param reference resolved path of the file that is named
   * @param from path of the image that names it
   * @throws {ImageError} DENIED with what to do about it
   */
  admit(reference: string, from: string, kind: ReferenceKind): void;
}

/** Lets everything through (`--allow-any`). */
export const OPEN_GATE: OpenGate = { admit: () => undefined };

/**
 * Allows files below given directories. Links are followed before judging: a link that leads out is out.
 *
 * With `ownDirectory`, an image's own directory and below are allowed too, and that of each backing file that was admitted, in turn.
 */
export class DirectoryGate implements OpenGate {
  readonly #allowed = new Set<string>();
  /** Directories on web servers. */
  readonly #allowedAddresses = new Set<string>();
  readonly #ownDirectory: boolean;

  constructor(options: { directories?: readonly string[]; ownDirectory: boolean }) {
    this.#ownDirectory = options.ownDirectory;
    for (const directory of options.directories ?? []) {
      if (isWebAddress(directory)) this.#allowedAddresses.add(directory.endsWith('/') ? directory : `${directory}/`);
      else this.#allowed.add(realOf(path.resolve(directory)));
    }
  }

  admit(reference: string, from: string, kind: ReferenceKind): void {
    if (isWebAddress(reference)) {
      this.#admitAddress(reference, from, kind);
      return;
    }
    const target = realOf(path.resolve(reference));
    // The image itself was named by the user: the directory of its real place counts, and the one the user wrote. One on a web server has
    // no business with files here.
    const isLocal = this.#ownDirectory && !isWebAddress(from);
    const own = isLocal ? [path.dirname(realOf(path.resolve(from))), path.dirname(path.resolve(from))] : [];
    for (const directory of [...own, ...this.#allowed]) {
      if (isBelow(target, directory)) {
        if (this.#ownDirectory && kind === 'backing file') this.#allowed.add(path.dirname(target));
        return;
      }
    }
    throw denied(reference, from, kind, path.dirname(reference));
  }

  #admitAddress(reference: string, from: string, kind: ReferenceKind): void {
    const own = this.#ownDirectory && isWebAddress(from) ? [new URL('.', from).href] : [];
    for (const directory of [...own, ...this.#allowedAddresses]) {
      if (!isAddressBelow(reference, directory)) continue;
      if (this.#ownDirectory && kind === 'backing file') this.#allowedAddresses.add(new URL('.', reference).href);
      return;
    }
    throw denied(reference, from, kind, URL.canParse(reference) ? new URL('.', reference).href : reference);
  }
}

function denied(reference: string, from: string, kind: ReferenceKind, directory: string): ImageError {
  return new ImageError('DENIED', `its ${kind} ${reference} is outside the directories that it may name files in`, {
    path: from,
    help: `If you trust this image, allow that directory: --allow ${directory}`,
  });
}

/** Whether a name is the address of something on a web server, and no path. */
export function isWebAddress(name: string): boolean {
  return /^https?:/i.test(name);
}

/** Whether an address is in a directory of a web server, or below. What a server may take for a way out of it is not. */
function isAddressBelow(address: string, directory: string): boolean {
  if (!URL.canParse(address) || !URL.canParse(directory)) return false;
  const [target, above] = [new URL(address), new URL(directory)]; // .. is resolved, however it is written
  if (/%2f|%5c/i.test(target.pathname)) return false;
  return target.origin === above.origin && target.pathname.startsWith(above.pathname);
}

function isBelow(target: string, directory: string): boolean {
  const relative = path.relative(directory, target);
  return relative === '' || (!relative.startsWith(`..${path.sep}`) && relative !== '..' && !path.isAbsolute(relative));
}

/** The real path; of a file that does not exist, that of its nearest existing directory with the rest appended. */
function realOf(file: string): string {
  try {
    return realpathSync(file);
  } catch {
    const parent = path.dirname(file);
    return parent === file ? file : path.join(realOf(parent), path.basename(file));
  }
}
