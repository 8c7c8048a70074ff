import { ImageError } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';
import type { Layer } from './layer.ts';

/** What the search for a parent may do: the gate has judged every file before it is touched. */
export interface ParentSearch {
  /** @throws {ImageError} DENIED */
  admit(path: string, from: string): void;
  /** Opens a file to look at its header: gated, read-only, without locks. */
  peek(path: string, from: string): Promise<Storage>;
}

/**
 * Compares what a child says of its parent with what the parent is.
 *
 * @param warn takes what is odd but common: ids that programs are careless about
 * @throws {ImageError} PARENT_MISMATCH naming both files and both ids
 */
export function checkParentIds(child: Layer, parent: Layer, ignore: boolean, warn: (message: string) => void): void {
  const { expected = {}, advisory = {} } = child.parent ?? {};
  const differences = (ids: Readonly<Record<string, string>>): string[] =>
    Object.entries(ids)
      .filter(([name, value]) => parent.ids?.[name] !== value)
      .map(([name, value]) => `${name} ${value}, which has ${parent.ids?.[name] ?? 'none'}`);
  const wrong = differences(expected);
  if (wrong.length > 0) {
    const message = `it was made on a ${wrong.join('; ')}: ${parent.storage.path} is not the image it was made on, or was written since`;
    if (!ignore) {
      throw new ImageError('PARENT_MISMATCH', message, {
        path: child.storage.path,
        help: 'Reading through it may show a mix of old and new data; --ignore-cid goes on all the same',
      });
    }
    warn(message);
    return;
  }
  const odd = differences(advisory);
  if (odd.length > 0)
    warn(`it was made on a parent with ${odd.join('; ')}: ${parent.storage.path} may have been written since`);
}
