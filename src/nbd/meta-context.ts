import { ProtocolError } from '../../formats/core/errors.ts';
import { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_DIRTY_BITMAP, MAX_STRING } from './protocol.ts';

/** Contexts that every export has; their ids are their places here plus one. Those of its bitmaps follow. */
const CONTEXTS = [CONTEXT_ALLOCATION, CONTEXT_DEPTH] as const;

export const ALLOCATION_ID = 1;
export const DEPTH_ID = 2;
export const FIRST_BITMAP_ID = 3;

/** What an export has to say of its blocks: by the names of its bitmaps, in the order of ids. */
type WithBitmaps = { readonly bitmaps?: readonly { readonly name: string }[] | undefined };

function contextNames({ bitmaps = [] }: WithBitmaps): readonly string[] {
  return [...CONTEXTS, ...bitmaps.map(({ name }) => CONTEXT_DIRTY_BITMAP + name)];
}

/** The name that goes with an id. */
export function contextName(found: WithBitmaps, id: number): string {
  return contextNames(found)[id - 1] ?? '';
}

/** LIST_META_CONTEXT or SET_META_CONTEXT, decoded. */
export interface MetaContextQuery {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/**
 * Decodes the data of LIST_META_CONTEXT and SET_META_CONTEXT: length and name of the export, number of queries, length and text of each.
 *
 * @throws {ProtocolError} when lengths do not add up
 */
export function parseMetaContextQuery(data: Buffer): MetaContextQuery {
  let at = 0;
  const word = (): number => {
    if (at + 4 > data.length) throw new ProtocolError('PROTOCOL', 'the option ends in the middle of a number');
    const value = data.readUInt32BE(at);
    at += 4;
    return value;
  };
  const text = (): string => {
    const length = word();
    if (length > MAX_STRING || at + length > data.length) {
      throw new ProtocolError('PROTOCOL', `a string of ${length} bytes does not fit into the option`);
    }
    at += length;
    return data.toString('utf8', at - length, at);
  };
  const exportName = text();
  const count = word();
  const queries: string[] = [];
  // Each takes four bytes or more: the data ends before a count that lies does harm.
  for (let i = 0; i < count; i++) queries.push(text());
  if (at !== data.length) throw new ProtocolError('PROTOCOL', 'bytes are left over behind the last query');
  return { exportName, queries };
}

/**
 * Ids of the contexts that queries ask for, in the server's order.
 *
 * @param listing a namespace alone (`base:`) asks for all in it, and no query for everything; in SET both ask for nothing
 */
export function matchContexts(found: WithBitmaps, queries: readonly string[], listing: boolean): number[] {
  const wanted = (name: string): boolean =>
    queries.some((query) => query === name || (listing && query.endsWith(':') && name.startsWith(query)));
  const all = listing && queries.length === 0;
  return contextNames(found).flatMap((name, i) => (all || wanted(name) ? [i + 1] : []));
}
