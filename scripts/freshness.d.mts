export function digestOfSources(): string;
export function isFresh(): boolean;
export function markFresh(digest: string, folder: string): void;
